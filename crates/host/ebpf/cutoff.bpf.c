// SPDX-License-Identifier: Apache-2.0
// What the kernel asks before a process of an agent's cgroup sends anything (`src/cutoff.rs`).
//
// `connect4/6` and `sendmsg4/6` answer EPERM at once; `egress` drops what goes out on connections
// that are established already. Unix sockets are not asked about.
//
// `cutoff.bpf.o` is this file, compiled by `./dev ebpf` (clang 16); a test holds the one against the
// other by the SHA-256 that is written into it. No program on the host needs a compiler.

#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))

// As loaders without BTF know a map, so that kernels without it will do.
struct map {
    __u32 type, key_size, value_size, max_entries, flags, id, pinning;
};

// Written by the supervisor: whether nothing may go out, and from when on (in nanoseconds since boot,
// suspension included; 0: never) nothing may because the supervisor has not been heard of.
enum { CUT, DEADLINE_NS, ORDERS };
SECTION("maps")
struct map orders = {
    .type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = ORDERS};

// Written here: what was refused, the bytes that went out (headers included), and when the last did.
enum { REFUSED, BYTES_OUT, LAST_OUT_NS, COUNTS };
SECTION("maps")
struct map counts = {
    .type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = COUNTS};

static void *(*const lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*const boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;

enum { REFUSE = 0, ALLOW = 1 };

static inline __u64 *word(struct map *map, __u32 key) { return lookup(map, &key); }

static inline int verdict(void) {
    __u64 *cut = word(&orders, CUT), *deadline = word(&orders, DEADLINE_NS);
    // Cannot be: but what cannot be judged is refused.
    if (!cut || !deadline) return REFUSE;
    if (!*cut && (!*deadline || boot_ns() < *deadline)) return ALLOW;
    __u64 *refused = word(&counts, REFUSED);
    if (refused) __sync_fetch_and_add(refused, 1);
    return REFUSE;
}

SECTION("cgroup/connect4") int connect4(struct bpf_sock_addr *address) { return verdict(); }
SECTION("cgroup/connect6") int connect6(struct bpf_sock_addr *address) { return verdict(); }
SECTION("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *address) { return verdict(); }
SECTION("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *address) { return verdict(); }

SECTION("cgroup_skb/egress") int egress(struct __sk_buff *packet) {
    if (verdict() == REFUSE) return REFUSE;
    __u64 *bytes = word(&counts, BYTES_OUT), *last = word(&counts, LAST_OUT_NS);
    if (bytes) __sync_fetch_and_add(bytes, packet->len);
    if (last) *last = boot_ns();
    return ALLOW;
}

// None of the helpers asks for the GPL.
SECTION("license") char license_of_this[] = "Apache-2.0";
SECTION("source") char source_digest[] = SOURCE_SHA256;
