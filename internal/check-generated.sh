#!/bin/sh
# Compiles the BPF programs again, beside the tree, and compares the result with
# what is committed. Without clang-19 only CI fails: everybody else relies on
# the checksum of the sources, which a test compares.
set -eu
cd "$(dirname "$0")/.."

missing=""
for tool in clang-19 llvm-strip-19; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
	echo "check-generated: not compiled again, missing:$missing (apt-get install clang-19 llvm-19)" >&2
	test -z "${CI:-}"
	exit
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R go.mod go.sum bpf "$copy"
(cd "$copy" && go generate ./...)
diff -r -q bpf "$copy/bpf" || {
	echo "check-generated: run \`make generate\` and commit what it changes" >&2
	exit 1
}
echo "check-generated: the committed objects are current"
