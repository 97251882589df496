#!/usr/bin/env python3
"""Verifies an evidence bundle of Estoppel: Python 3.8 or later, its standard library, nothing else.

    verify.py BUNDLE.tar [--checkpoint FILE] [--key HEX]

Every byte of the file is either hashed or compared with what must stand there. --checkpoint is a
checkpoint of the same server that was kept elsewhere (a page carries one): it shows whose key signed,
and that the bundle's ledger is neither rolled back behind it nor rewritten. --key is the server's
public key. Ends with 0 when all is right, 1 when something is wrong (it is named), 2 on wrong usage.
The format is described in docs/evidence-bundle.md.
"""

import argparse
import base64
import functools
import hashlib
import io
import json
import re
import sys

FIXED = ["README.txt", "verify.py", "custody.jsonl", "ledger/checkpoint", "ledger/leaves"]
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MIB = 1 << 20
LIMITS = {"bundle.dsse.json": 64 * MIB, "custody.jsonl": 64 * MIB, "README.txt": MIB, "verify.py": MIB,
          "ledger/checkpoint": 64 * 1024, "ledger/leaves": 128 * MIB}


class Wrong(Exception):
    """What is wrong with the bundle."""


# Ed25519, RFC 8032 section 5.1, with extended coordinates (X, Y, Z, T).
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)
ZERO = (0, 1, 1, 0)


def add(a, b):
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, d - c, d + c, f + e
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def times(scalar, point):
    result = ZERO
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def same(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def decompress(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE = decompress((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


@functools.lru_cache(maxsize=4096)
def signed(key, message, signature):
    """Whether the key (32 bytes) signed the message; strict: no weak key, one signature a text."""
    if len(key) != 32 or len(signature) != 64:
        return False
    a, r = decompress(key), decompress(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L or same(times(8, a), ZERO) or same(times(8, r), ZERO):
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    return same(times(s, BASE), add(r, times(h, a)))


def unhex(text, length):
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{%d}" % (2 * length), text):
        raise Wrong("%.80r is not %d bytes in lower-case hex" % (text, length))
    return bytes.fromhex(text)


def unbase64(text):
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise Wrong("%.80r is no base64" % (text,)) from None


def parse(text, what):
    def once(pairs):
        if len(dict(pairs)) != len(pairs):
            raise Wrong("%s has a field twice" % what)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Wrong("%s is no JSON: %s" % (what, error)) from None


def fields(value, what, names, optional=()):
    if not isinstance(value, dict) or set(value) - set(optional) != set(names):
        raise Wrong("%s has not the fields of its format" % what)
    return [value[name] for name in names]


def number(value):
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise Wrong("%.80r is no count" % (value,))
    return value


def header(name, size):
    """The one header (POSIX ustar) that an entry may have."""
    def octal(value, digits):
        return b"%0*o\0" % (digits, value)

    head = name.encode().ljust(100, b"\0") + octal(0o644, 7) + octal(0, 7) * 2 + octal(size, 11)
    head += octal(0, 11) + b" " * 8 + b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + octal(0, 7) * 2
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


class Entries:
    """The entries of the archive, one after the other."""

    def __init__(self, file):
        self.file = file

    def take(self, size, name):
        data = self.file.read(size)
        if len(data) != size:
            raise Wrong("%s is cut off: the bundle ends before it should" % name)
        return data

    def next(self, name, size, keep):
        head = self.take(512, name)
        if size is None and re.fullmatch(b"[0-7]{11}", head[124:135]):
            size = int(head[124:135], 8)
        if size is None or head != header(name, size):
            raise Wrong("%s is not where it should be: an entry was changed, removed, moved or put in" % name)
        if size > LIMITS.get(name, 16 * MIB if name.startswith("manifests/") else 2**33 - 1):
            raise Wrong("%s is too large" % name)
        digest, kept, left = hashlib.sha256(), [], size
        while left:
            piece = self.take(min(left, MIB), name)
            digest.update(piece)
            if keep:
                kept.append(piece)
            left -= len(piece)
        if any(self.take(-size % 512, name)):
            raise Wrong("the padding behind %s was changed" % name)
        return digest.hexdigest(), b"".join(kept)

    def end(self):
        if any(self.take(1024, "the end")):
            raise Wrong("the padding at the end was changed")
        if self.file.read(1):
            raise Wrong("something follows the end of the bundle")


def open_envelope(text):
    payload, _, signatures = fields(parse(text, "bundle.dsse.json"), "bundle.dsse.json",
                                    ["payload", "payloadType", "signatures"])
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Wrong("bundle.dsse.json has not one signature")
    keyid, sig = fields(signatures[0], "bundle.dsse.json", ["keyid", "sig"])
    key, payload, signature = unhex(keyid, 32), unbase64(payload), unbase64(sig)
    shape = '{"payloadType":"%s","payload":"%s","signatures":[{"keyid":"%s","sig":"%s"}]}\n'
    encoded = [base64.b64encode(data).decode() for data in (payload, signature)]
    if text != (shape % (PAYLOAD_TYPE, encoded[0], keyid, encoded[1])).encode():
        raise Wrong("bundle.dsse.json is not written as a bundle's is")
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    if not signed(key, message, signature):
        raise Wrong("bundle.dsse.json is not signed by key %s: it was changed" % keyid)
    return payload, keyid


def read_statement(payload, keyid):
    statement = parse(payload, "the signed list")
    kind, subjects, predicate_type, predicate = fields(
        statement, "the signed list", ["_type", "subject", "predicateType", "predicate"])
    if (kind, predicate_type) != ("https://in-toto.io/Statement/v1", "https://estoppel.dev/evidence-bundle/v1"):
        raise Wrong("the signed list is of another type or version")
    fields(predicate, "the predicate", ["bundle", "created_at", "created_by", "purpose", "tool", "key",
                                        "captures", "missing"])
    if predicate["key"] != keyid:
        raise Wrong("the signed list names another key than the one that signed")
    files, last = [], None
    for index, subject in enumerate(subjects):
        name, digest, annotations = fields(subject, "a subject", ["name", "digest", "annotations"])
        sha256, = fields(digest, "a subject", ["sha256"])
        size, = fields(annotations, "a subject", ["bytes"])
        unhex(sha256, 32)
        if index < len(FIXED):
            fits = name == FIXED[index]
        else:
            place = (name == "blobs/" + sha256, sha256)
            fits = (place[0] or name == "manifests/%s.json" % sha256) and (last is None or last < place)
            last = place
        if not fits:
            raise Wrong("%.80r is not a name that comes there" % (name,))
        files.append((name, sha256, number(size)))
    if len(files) < len(FIXED):
        raise Wrong("the signed list lacks what every bundle has")
    return files, predicate


def check_items(predicate, contents, sizes):
    """Each item is there or said to be missing, and nothing is there that no item names."""
    blobs = {name[6:] for name in sizes if name.startswith("blobs/")}
    manifests = {name for name in sizes if name.startswith("manifests/")}
    missing = {fields(absent, "a missing item", ["sha256", "why"])[0] for absent in predicate["missing"]}
    if missing & blobs or len(missing) != len(predicate["missing"]):
        raise Wrong("something is missing and there, or missing twice")
    named, seen = set(), set()
    for capture in predicate["captures"]:
        fields(capture, "a capture", ["capture", "incident", "manifest", "custody", "disposed"], ["number"])
        file = "manifests/%s.json" % capture["manifest"]
        if file not in manifests or file in seen:
            raise Wrong("capture %.80r has no manifest of its own" % (capture["capture"],))
        seen.add(file)
        manifest = parse(contents[file], file)
        if not isinstance(manifest, dict) or manifest.get("id") != capture["capture"] or manifest.get("schema") != 1:
            raise Wrong("%s is not of its capture, or of another version" % file)
        for item in [] if capture["disposed"] else manifest["items"]:
            stored = item["stored_sha256"]
            named.add(stored)
            fits = stored in missing
            if stored in blobs:
                fits = stored != item["sha256"] or sizes["blobs/" + stored] == item["bytes"]
            if not fits:
                raise Wrong("item %.80r of capture %s is not in it" % (item["id"], capture["capture"]))
    if manifests - seen or (blobs | missing) - named:
        raise Wrong("there is something that no capture names")


def leaf_of(record, salt):
    """The leaf of the ledger's tree, RFC 6962 with a salt."""
    def text(value):
        data = value.encode()
        return len(data).to_bytes(8, "big") + data

    entry = b"estoppel.dev/ledger/record/1\n" + record["seq"].to_bytes(8, "big")
    entry += record["at_us"].to_bytes(8, "big", signed=True) + text(record["kind"])
    entry += b"\1" + text(record["key"]) + text(record["body"])
    return hashlib.sha256(b"\0" + salt + entry).digest()


def check_custody(text, predicate, leaves):
    """Each record is the ledger's; each event is signed and continues its capture's chain."""
    chains = {capture["capture"]: [capture, 0, None, False] for capture in predicate["captures"]}
    incidents = {capture["incident"] for capture in predicate["captures"]}
    key, last, events = unhex(predicate["key"], 32), -1, 0
    for line, raw in enumerate(text.splitlines(), 1):
        def wrong(why):
            return Wrong("custody.jsonl, line %d: %s" % (line, why))

        record = parse(raw, "custody.jsonl, line %d" % line)
        fields(record, "custody.jsonl, line %d" % line, ["seq", "at_us", "kind", "key", "salt", "body"])
        seq = number(record["seq"])
        if seq <= last:
            raise wrong("it does not come after the record before it")
        last = seq
        if leaves[32 * seq:32 * seq + 32] != leaf_of(record, unhex(record["salt"], 32)):
            raise wrong("the ledger's leaf %d is another: it is not the record that was kept" % seq)
        body = parse(record["body"], "custody.jsonl, line %d" % line)
        if record["kind"] in ("evidence.hold", "evidence.hold_released"):
            if body["incident"] not in incidents:
                raise wrong("it is of no incident of the bundle")
            continue
        if record["kind"] != "evidence.custody":
            raise wrong("it is no record of custody")
        event_text, by, signature = fields(body, "an event", ["event", "key", "signature"])
        message = b"estoppel.dev/custody/1\n" + event_text.encode()
        if by != predicate["key"] or not signed(key, message, unhex(signature, 64)):
            raise wrong("it is not signed by key %s" % predicate["key"])
        event = parse(event_text, "custody.jsonl, line %d" % line)
        chain = chains.get(event["capture"])
        if chain is None or event["case"] != chain[0]["incident"]:
            raise wrong("it is of no capture of the bundle")
        if (event["seq"], event["prev_hash"]) != (chain[1], chain[2]):
            raise wrong("it does not follow the event before: something was changed, left out or put in")
        begins = event["action"] in ("acquire", "transfer") and event.get("hash_after") == chain[0]["manifest"]
        if chain[1] == 0 and not begins:
            raise wrong("the chain does not begin with this capture's manifest")
        chain[1:] = [chain[1] + 1, hashlib.sha256(event_text.encode()).hexdigest(),
                     chain[3] or event["action"] == "dispose"]
        events += 1
    for capture, count, digest, disposed in chains.values():
        if capture["custody"] != {"count": count, "last": digest} or capture["disposed"] != disposed:
            raise Wrong("the custody chain of capture %s is not as long as its head says, or ends otherwise"
                        % capture["capture"])
    return events


def root_of(leaves):
    """The root over leaves of 32 bytes, RFC 6962 section 2.1."""
    level = [leaves[at:at + 32] for at in range(0, len(leaves), 32)]
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        # One without a neighbour goes up as it is: the same tree.
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2])]
        level = pairs + level[2 * len(pairs):]
    return level[0]


def read_checkpoint(note, keyid, what):
    """Size and root of a checkpoint (C2SP) that the key has signed for its own ledger."""
    key = unhex(keyid, 32)
    origin = "estoppel.dev/ledger/" + hashlib.sha256(key).hexdigest()[:16]
    text, _, lines = note.rpartition("\n\n")
    text += "\n"
    if not text.startswith(origin + "\n"):
        raise Wrong("%s is of another ledger than key %s's" % (what, keyid))
    found = re.fullmatch("([^\n]+)\n(0|[1-9][0-9]{0,19})\n([^\n]+)\n", text)
    if not found or not lines.endswith("\n"):
        raise Wrong("%s is no checkpoint" % what)
    identity = hashlib.sha256(origin.encode() + b"\n\1" + key).digest()[:4]
    ours = 0
    for line in lines[:-1].split("\n"):
        parts = re.fullmatch("\u2014 ([^ +]+) ([^ ]+)", line)
        if not parts:
            raise Wrong("%s is no signed note" % what)
        data = unbase64(parts.group(2))
        if base64.b64encode(data).decode() != parts.group(2):
            raise Wrong("%s is no signed note" % what)
        if parts.group(1) == origin and data[:4] == identity:
            ours += 1
            if not signed(key, text.encode(), data[4:]):
                raise Wrong("%s was changed: its signature does not fit" % what)
    if not ours:
        raise Wrong("%s is not signed by key %s" % (what, keyid))
    root = unbase64(found.group(3))
    if len(root) != 32:
        raise Wrong("%s is no checkpoint" % what)
    return int(found.group(2)), root


def verify(file, checkpoint=None, key=None):
    """Verifies the bundle in a binary file; what it is, or `Wrong`."""
    entries = Entries(file)
    payload, keyid = open_envelope(entries.next("bundle.dsse.json", None, True)[1])
    files, predicate = read_statement(payload, keyid)
    contents = {}
    for name, sha256, size in files:
        found, content = entries.next(name, size, not name.startswith("blobs/"))
        if found != sha256:
            raise Wrong("%s was changed: its SHA-256 is %s, not %s" % (name, found, sha256))
        contents[name] = content
    entries.end()
    leaves = contents["ledger/leaves"]
    try:
        note = contents["ledger/checkpoint"].decode()
        check_items(predicate, contents, {name: size for name, _, size in files})
        events = check_custody(contents["custody.jsonl"].decode(), predicate, leaves)
    except (KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise Wrong("it has not the fields of its format: %r" % error) from None
    size, root = read_checkpoint(note, keyid, "ledger/checkpoint")
    if len(leaves) != 32 * size or root_of(leaves) != root:
        raise Wrong("ledger/leaves are not what ledger/checkpoint covers")
    if checkpoint is not None:
        kept, kept_root = read_checkpoint(checkpoint, keyid, "the given checkpoint")
        if kept > size:
            raise Wrong("rolled back: its ledger has %d records, and had %d when the given checkpoint was"
                        " signed" % (size, kept))
        if root_of(leaves[:32 * kept]) != kept_root:
            raise Wrong("rewritten: the first %d records are not those of the given checkpoint" % kept)
    if key is not None and key != keyid:
        raise Wrong("it is signed by key %s, not by the given one" % keyid)
    return {"bundle": predicate["bundle"], "key": keyid, "created_at": predicate["created_at"],
            "captures": [capture["capture"] for capture in predicate["captures"]], "events": events,
            "blobs": sum(name.startswith("blobs/") for name, _, _ in files), "records": size,
            "missing": predicate["missing"], "proved": checkpoint is not None or key is not None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--checkpoint", help="a checkpoint that was kept elsewhere")
    parser.add_argument("--key", help="the server's public key, 64 hex digits")
    args = parser.parse_args()
    checkpoint = None
    if args.checkpoint is not None:
        with open(args.checkpoint, encoding="utf-8", newline="") as file:
            checkpoint = file.read()
    try:
        with open(args.bundle, "rb") as file:
            report = verify(io.BufferedReader(file.raw), checkpoint, args.key)
    except Wrong as error:
        print("WRONG: %s" % error)
        return 1
    print(json.dumps(report, indent=2))
    if not report["proved"]:
        print("nothing from outside was given: that the key is the server's, and that no newer bundle exists,"
              " is not proved", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
