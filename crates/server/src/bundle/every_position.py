"""Tries every position of a small bundle against verify_bundle.py, in one process.

    every_position.py SCRIPT FOLDER

The folder holds bundle.tar, which is good; kept-N, checkpoints of its ledger from before; later-N,
checkpoints of its ledger after it was made; other-N, checkpoints of another history of the same key.
Prints what was not found; ends with 0 when there is none.
"""

import importlib.util
import io
import pathlib
import sys

spec = importlib.util.spec_from_file_location("verify_bundle", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
folder = pathlib.Path(sys.argv[2])
good = (folder / "bundle.tar").read_bytes()
missed = []


def wrong(data, checkpoint=None, key=None):
    """What the script names, or nothing."""
    try:
        script.verify(io.BytesIO(data), checkpoint, key)
    except script.Wrong as error:
        return str(error)
    return ""


def expect(what, found, word=""):
    if not found or word not in found:
        missed.append("%s: %r" % (what, found))


# RFC 8032, section 7.1: public key, message, signature.
VECTORS = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
     "d25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
     "387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
     "4a7c15e9716ed28dc027beceea1ec40a"),
]
for key, message, signature in VECTORS:
    key, message, signature = (bytes.fromhex(text) for text in (key, message, signature))
    if not script.signed(key, message, signature):
        missed.append("a signature of RFC 8032 is not taken")
    for at in (0, 31, 32, 63):
        changed = bytes(byte ^ (index == at) for index, byte in enumerate(signature))
        if script.signed(key, message, changed):
            missed.append("a changed signature of RFC 8032 is taken")
    scalar = int.from_bytes(signature[32:], "little") + script.L
    if script.signed(key, message, signature[:32] + scalar.to_bytes(32, "little")):
        missed.append("a second signature of one text is taken")
    if script.signed(key, message + b"x", signature):
        missed.append("a signature of another text is taken")
if script.signed((1).to_bytes(32, "little"), b"any", (1).to_bytes(32, "little") + bytes(32)):
    missed.append("a weak key signs anything")

if wrong(good):
    missed.append("the good bundle: " + wrong(good))
    print("\n".join(missed))
    sys.exit(1)
keyid = script.verify(io.BytesIO(good))["key"]
if wrong(good, key=keyid):
    missed.append("the good bundle by its key")
expect("another key", wrong(good, key="00" * 32), "signed by key")
for path in sorted(folder.iterdir()):
    kind = path.name.split("-")[0]
    if kind == "kept" and wrong(good, path.read_text()):
        missed.append("%s: %s" % (path.name, wrong(good, path.read_text())))
    if kind == "later":
        expect(path.name, wrong(good, path.read_text()), "rolled back")
    if kind == "other":
        expect(path.name, wrong(good, path.read_text()), "rewritten")

payload = range(good.index(b'"payload":"') + 11, good.index(b'","signatures"'))
shipped = range(good.index(b"This is an evidence bundle"), good.index(b"sys.exit(main())"))
tried = 0
data = bytearray(good)
for at in range(len(good)):
    # A change in the signed list costs a verification each, and those in the files that ship with
    # each bundle are one digest: some of both are tried here, all of them by the other verifier.
    if (at in payload and at % 11) or (at in shipped and at % 97):
        continue
    data[at] ^= 1
    expect("byte %d" % at, wrong(bytes(data)))
    data[at] ^= 1
    tried += 1
for length in range(0, len(good), 61):
    expect("the first %d bytes" % length, wrong(good[:length]), "cut off")
expect("a byte more", wrong(good + b"\0"), "follows the end")
if tried < 4000:
    missed.append("only %d positions were tried" % tried)
print("\n".join(missed[:20]))
sys.exit(bool(missed))
