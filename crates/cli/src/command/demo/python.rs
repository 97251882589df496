//! The Python that runs the runaway's agent: an interpreter that has the package `estoppel`, and, for a
//! confined agent, one that the agent's user can reach.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    error::{CommandError, Exit, Result},
    output::inline,
};

/// Tells where the package and the interpreter really are, one to a line.
const WHERE: &str = "import estoppel, os, sys\n\
    print(os.path.dirname(estoppel.__file__))\n\
    print(sys.executable)\n\
    print(os.path.realpath(sys.executable))\n\
    print(os.path.realpath(sys.base_prefix))";
/// Interpreters of the machine, which everybody may run.
const OF_THE_MACHINE: [&str; 2] = ["/usr/bin/python3", "/usr/local/bin/python3"];

/// An interpreter that has the package.
#[derive(Debug)]
pub(super) struct Python {
    pub(super) program: PathBuf,
    /// A copy of the package for it, where it has none of its own.
    pub(super) packages: Option<Copied>,
}

/// A folder of ours; removed with this.
#[derive(Debug)]
pub(super) struct Copied(PathBuf);

impl Copied {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // What stays behind is some files in the folder for such.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where an interpreter and its package are.
struct Place {
    package: PathBuf,
    /// As it is called: a virtual environment is one by that.
    called: PathBuf,
    interpreter: PathBuf,
    library: PathBuf,
}

impl Python {
    /// The interpreter that was given, else the `python3` of the search path.
    ///
    /// # Errors
    /// When it does not run, or has no package `estoppel`.
    pub(super) fn find(given: Option<&Path>) -> Result<Self> {
        let program = given.map_or_else(|| PathBuf::from("python3"), Path::to_owned);
        place(&program, None).map_err(|why| {
            let message = format!("`{}` cannot run the agent: {}", program.display(), inline(&why));
            CommandError::message(Exit::Usage, message)
                .hint("pip install estoppel, or name a Python that has it: --python PATH")
                .hint("from the sources: ./dev demo --scenario runaway")
        })?;
        Ok(Self { program, packages: None })
    }

    /// The same for an agent that runs as another user: as it is, if that user can reach it; else a copy
    /// of its package, for it or for an interpreter of the machine. `None` where there is no such.
    pub(super) fn for_others(&self) -> Result<Option<Self>> {
        let Ok(place) = place(&self.program, None) else { return Ok(None) };
        let can_run = reachable(&place.interpreter) && reachable(&place.library);
        if can_run && reachable(&place.called) && reachable(&place.package) {
            return Ok(Some(Self { program: place.called, packages: None }));
        }
        let folder =
            std::env::temp_dir().join(format!("estoppel-demo-python-{}", std::process::id()));
        if !reachable(&folder) {
            return Ok(None);
        }
        // Nobody else's: this is run.
        std::fs::create_dir(&folder)?;
        let packages = Copied(folder);
        copy(&place.package, &packages.path().join("estoppel"))?;
        std::fs::set_permissions(packages.path(), Permissions::from_mode(0o755))?;
        let own = can_run.then_some(place.interpreter);
        let machine = OF_THE_MACHINE.iter().map(PathBuf::from);
        let mut programs = own.into_iter().chain(machine);
        let program = programs.find(|program| self::place(program, Some(packages.path())).is_ok());
        Ok(program.map(|program| Self { program, packages: Some(packages) }))
    }
}

/// Asks an interpreter where it and its package are; else why it cannot say.
fn place(program: &Path, packages: Option<&Path>) -> std::result::Result<Place, String> {
    let mut command = Command::new(program);
    command.args(["-c", WHERE]).stdin(Stdio::null()).env("PYTHONDONTWRITEBYTECODE", "1");
    if let Some(packages) = packages {
        command.env("PYTHONPATH", packages);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().last().unwrap_or("it says nothing").to_owned());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<PathBuf> = said.lines().map(PathBuf::from).collect();
    let Ok([package, called, interpreter, library]) = <[PathBuf; 4]>::try_from(lines) else {
        return Err("it does not say where its package is".to_owned());
    };
    Ok(Place { package, called, interpreter, library })
}

/// Whether all users may go where this is.
pub(super) fn reachable(path: &Path) -> bool {
    path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).all(|folder| {
        std::fs::metadata(folder).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    })
}

/// Copies a folder of code.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    std::fs::set_permissions(to, Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
            std::fs::set_permissions(&to, Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_without_the_package_is_named_with_a_hint() {
        let error = Python::find(Some(Path::new("/nonexistent/python"))).unwrap_err();
        let said = error.error.to_string();
        assert!(said.contains("`/nonexistent/python` cannot run the agent"), "{said}");
        assert!(error.hints[0].contains("pip install estoppel"), "{:?}", error.hints);
        // A program that succeeds and says nothing is no Python.
        let error = Python::find(Some(Path::new("true"))).unwrap_err();
        assert!(error.error.to_string().contains("does not say"), "{}", error.error);
    }

    #[test]
    fn what_lies_in_a_private_folder_is_out_of_reach() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("private");
        std::fs::create_dir(&private).unwrap();
        std::fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
        assert!(!reachable(&private.join("python3")));
        assert!(reachable(Path::new("/usr/bin/python3")));
    }
}
