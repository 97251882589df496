//! SQLite on a [`FaultyDisk`]: a VFS that wraps the system's own.
//!
//! Reads, locks and shared memory go to the system's VFS. Writes, truncations, syncs, creations and
//! deletions go there, too, but are asked of the disk first and recorded. Shared memory (`-shm`) is
//! not recorded: SQLite rebuilds it after a crash.
#![expect(unsafe_code, reason = "SQLite's VFS is a C interface: tables of functions and raw files")]

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int, c_void},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use super::{FaultyDisk, image::FileId, parent};

/// A registered VFS. It stays registered to the end of the process.
#[derive(Debug, Clone)]
pub struct SqliteVfs {
    name: String,
}

impl SqliteVfs {
    /// Registers a VFS on a disk, under a name of its own. `None` where SQLite has no default VFS.
    pub fn register(disk: &FaultyDisk) -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("estoppel-faulty-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let c_name = CString::new(name.clone()).ok()?;
        // SAFETY: a null name asks for the default VFS, which lives as long as the process.
        let base = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        if base.is_null() {
            return None;
        }
        // SAFETY: SQLite's own VFS, checked not to be null; nobody changes it while we read.
        let (base_size, path_max) = unsafe { ((*base).szOsFile, (*base).mxPathname) };
        let own_size = c_int::try_from(size_of::<ShimFile>()).ok()?;
        let shim = Box::leak(Box::new(Shim { base, disk: disk.clone() }));
        let vfs = Box::leak(Box::new(sqlite3_vfs {
            // Version 2: no replacing of system calls.
            iVersion: 2,
            szOsFile: own_size + base_size,
            mxPathname: path_max,
            pNext: ptr::null_mut(),
            zName: c_name.into_raw(),
            pAppData: ptr::from_mut(shim).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        }));
        // SAFETY: the table and all it points to were leaked, so they outlive every use.
        let registered = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
        (registered == ffi::SQLITE_OK).then_some(Self { name })
    }

    /// The name to open databases with.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// `pAppData` of the VFS.
struct Shim {
    base: *mut sqlite3_vfs,
    disk: FaultyDisk,
}

/// SQLite's view of an open file; the system's own `sqlite3_file` follows it in memory.
#[repr(C)]
struct ShimFile {
    header: sqlite3_file,
    /// Null where the file is temporary, or is not open.
    recorded: *mut Recorded,
}

struct Recorded {
    disk: FaultyDisk,
    file: FileId,
    life: u64,
    /// The folder that SQLite's unix VFS syncs with the first sync of a journal that it created.
    folder_to_sync: Option<PathBuf>,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // Version 2: shared memory for the write-ahead log, but no memory-mapped content.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// The shim behind a VFS of ours.
///
/// # Safety
/// `vfs` is one that [`SqliteVfs::register`] made.
unsafe fn shim<'v>(vfs: *mut sqlite3_vfs) -> &'v Shim {
    // SAFETY: by the contract, `pAppData` is the leaked `Shim`, which nobody changes.
    unsafe { &*(*vfs).pAppData.cast::<Shim>() }
}

/// The system's file behind one of ours.
///
/// # Safety
/// `file` is memory of `szOsFile` bytes that SQLite gave to [`open`].
unsafe fn real(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: by the contract, the system's file lies right behind `ShimFile`, whose size is a
    // multiple of a pointer's, so that it is aligned.
    unsafe { file.cast::<ShimFile>().add(1).cast() }
}

/// What is recorded of a file; `None` for a temporary one.
///
/// # Safety
/// As [`real`], and the file is open. SQLite uses a file from one thread at a time.
unsafe fn recorded<'f>(file: *mut sqlite3_file) -> Option<&'f mut Recorded> {
    // SAFETY: by the contract, the pointer is null or the box that `open` leaked.
    unsafe { (*file.cast::<ShimFile>()).recorded.as_mut() }
}

/// Calls a method of the system's file: `None` where it has none.
macro_rules! system {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let file = real($file);
        (*(*file).pMethods).$method.map(|method| method(file $(, $argument)*))
    }};
}

/// Calls a function of the system's VFS: `None` where it has none.
macro_rules! system_vfs {
    ($vfs:expr, $function:ident $(, $argument:expr)*) => {{
        let base = shim($vfs).base;
        (*base).$function.map(|function| function(base $(, $argument)*))
    }};
}

fn path_of<'p>(name: *const c_char) -> Option<&'p Path> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SQLite's file names are C strings that live while the call that gets them does.
    let name = unsafe { CStr::from_ptr(name) };
    Some(Path::new(OsStr::from_bytes(name.to_bytes())))
}

fn code(error: &io::Error, otherwise: c_int) -> c_int {
    if error.kind() == io::ErrorKind::StorageFull { ffi::SQLITE_FULL } else { otherwise }
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let path = path_of(name);
    let existed = path.is_some_and(Path::exists);
    // SAFETY: SQLite calls this with our VFS and memory of `szOsFile` bytes. `pMethods` is set to
    // null first, which tells SQLite not to close what did not open.
    unsafe {
        (*file).pMethods = ptr::null();
        (*file.cast::<ShimFile>()).recorded = ptr::null_mut();
        let shim = shim(vfs);
        let opened = system_vfs!(vfs, xOpen, name, real(file), flags, out_flags);
        let opened = opened.unwrap_or(ffi::SQLITE_CANTOPEN);
        if opened != ffi::SQLITE_OK {
            return opened;
        }
        (*file).pMethods = &raw const METHODS;
        if let Some(path) = path {
            let mut state = shim.disk.lock();
            if existed {
                if state.adopt(path).is_err() {
                    return ffi::SQLITE_CANTOPEN;
                }
            } else {
                state.created(path);
            }
            let journal = ffi::SQLITE_OPEN_WAL
                | ffi::SQLITE_OPEN_MAIN_JOURNAL
                | ffi::SQLITE_OPEN_SUPER_JOURNAL;
            let recorded = Recorded {
                disk: shim.disk.clone(),
                file: state.names.get(path).copied().unwrap_or_default(),
                life: state.life,
                folder_to_sync: (!existed && flags & journal != 0).then(|| parent(path)),
            };
            (*file.cast::<ShimFile>()).recorded = Box::into_raw(Box::new(recorded));
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file that `open` opened, once.
    unsafe {
        let recorded = (*file.cast::<ShimFile>()).recorded;
        if !recorded.is_null() {
            drop(Box::from_raw(recorded));
            (*file.cast::<ShimFile>()).recorded = ptr::null_mut();
        }
        system!(file, xClose).unwrap_or(ffi::SQLITE_OK)
    }
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    let Some(path) = path_of(name) else { return ffi::SQLITE_IOERR_DELETE };
    // SAFETY: SQLite calls this with our VFS.
    let shim = unsafe { shim(vfs) };
    let mut state = shim.disk.lock();
    // SAFETY: as above; the folder's sync is recorded, the real one would only take time.
    let deleted = unsafe { system_vfs!(vfs, xDelete, name, 0) };
    let deleted = deleted.unwrap_or(ffi::SQLITE_IOERR_DELETE);
    if deleted == ffi::SQLITE_OK {
        state.removed(path);
        if sync != 0 && state.sync_folder(&parent(path)).is_err() {
            return ffi::SQLITE_IOERR_DIR_FSYNC;
        }
    }
    deleted
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls this with an open file and `length` bytes to read at `bytes`.
    unsafe {
        let Some(recorded) = recorded(file) else {
            return system!(file, xWrite, bytes, length, offset).unwrap_or(ffi::SQLITE_IOERR_WRITE);
        };
        let (Ok(count), Ok(at)) = (usize::try_from(length), u64::try_from(offset)) else {
            return ffi::SQLITE_IOERR_WRITE;
        };
        let mut state = recorded.disk.lock();
        if let Err(error) = state.admit_write(recorded.life, recorded.file, at, count) {
            return code(&error, ffi::SQLITE_IOERR_WRITE);
        }
        let done = system!(file, xWrite, bytes, length, offset).unwrap_or(ffi::SQLITE_IOERR_WRITE);
        if done == ffi::SQLITE_OK {
            let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), count);
            state.wrote(recorded.file, at, bytes);
        }
        done
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls this with an open file.
    unsafe {
        let failed = ffi::SQLITE_IOERR_TRUNCATE;
        let Some(recorded) = recorded(file) else {
            return system!(file, xTruncate, length).unwrap_or(failed);
        };
        let Ok(bytes) = u64::try_from(length) else { return failed };
        let mut state = recorded.disk.lock();
        if let Err(error) = state.admit_length(recorded.life, recorded.file, bytes) {
            return code(&error, failed);
        }
        let done = system!(file, xTruncate, length).unwrap_or(failed);
        if done == ffi::SQLITE_OK {
            state.set_length(recorded.file, bytes);
        }
        done
    }
}

/// Records a sync; the real one would only take time, since no test cuts the power.
unsafe extern "C" fn sync(file: *mut sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite calls this with an open file.
    let Some(recorded) = (unsafe { recorded(file) }) else { return ffi::SQLITE_OK };
    let mut state = recorded.disk.lock();
    if state.sync(recorded.life, recorded.file).is_err() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    if let Some(folder) = recorded.folder_to_sync.take()
        && state.sync_folder(&folder).is_err()
    {
        return ffi::SQLITE_IOERR_DIR_FSYNC;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(
    file: *mut sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    // A hint would let the system's VFS grow the file behind our back.
    if operation == ffi::SQLITE_FCNTL_SIZE_HINT {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: SQLite calls this with an open file and the operation's argument.
    unsafe { system!(file, xFileControl, operation, argument).unwrap_or(ffi::SQLITE_NOTFOUND) }
}

/// Functions of the VFS that go to the system's unchanged.
macro_rules! pass_to_vfs {
    ($($name:ident => $function:ident($($argument:ident: $type:ty),*) else $otherwise:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs $(, $argument: $type)*) -> c_int {
            // SAFETY: SQLite calls this with our VFS; the arguments go on as they came.
            unsafe { system_vfs!(vfs, $function $(, $argument)*).unwrap_or($otherwise) }
        }
    )*};
}

/// Methods of a file that go to the system's unchanged.
macro_rules! pass_to_file {
    ($($name:ident => $method:ident($($argument:ident: $type:ty),*) else $otherwise:expr;)*) => {$(
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $argument: $type)*) -> c_int {
            // SAFETY: SQLite calls this with an open file; the arguments go on as they came.
            unsafe { system!(file, $method $(, $argument)*).unwrap_or($otherwise) }
        }
    )*};
}

pass_to_vfs! {
    access => xAccess(name: *const c_char, flags: c_int, out: *mut c_int) else ffi::SQLITE_IOERR;
    full_pathname => xFullPathname(name: *const c_char, length: c_int, out: *mut c_char)
        else ffi::SQLITE_CANTOPEN;
    randomness => xRandomness(length: c_int, out: *mut c_char) else 0;
    sleep => xSleep(micros: c_int) else 0;
    current_time => xCurrentTime(out: *mut f64) else ffi::SQLITE_ERROR;
    last_error => xGetLastError(length: c_int, out: *mut c_char) else 0;
    current_time_int64 => xCurrentTimeInt64(out: *mut sqlite3_int64) else ffi::SQLITE_ERROR;
}

pass_to_file! {
    read => xRead(out: *mut c_void, length: c_int, offset: sqlite3_int64) else ffi::SQLITE_IOERR;
    file_size => xFileSize(out: *mut sqlite3_int64) else ffi::SQLITE_IOERR;
    lock => xLock(level: c_int) else ffi::SQLITE_IOERR;
    unlock => xUnlock(level: c_int) else ffi::SQLITE_IOERR;
    check_reserved_lock => xCheckReservedLock(out: *mut c_int) else ffi::SQLITE_IOERR;
    sector_size => xSectorSize() else 512;
    device_characteristics => xDeviceCharacteristics() else 0;
    shm_map => xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void)
        else ffi::SQLITE_IOERR;
    shm_lock => xShmLock(offset: c_int, count: c_int, flags: c_int) else ffi::SQLITE_IOERR;
    shm_unmap => xShmUnmap(delete: c_int) else ffi::SQLITE_OK;
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: SQLite calls this with an open file.
    unsafe {
        system!(file, xShmBarrier);
    }
}
