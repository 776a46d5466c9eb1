#!/bin/sh
# Generates what is committed again, beside the tree, and compares. What is made
# of .proto files needs only Go. Without clang-19, which compiles the BPF programs,
# only CI fails: everybody else relies on the checksum of the sources, which a test
# compares.
set -eu
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
compare() {
	diff -r -q "$1" "$copy/$1" || {
		echo "check-generated: run \`make generate\` and commit what it changes" >&2
		exit 1
	}
}

mkdir -p "$copy/wire" "$copy/internal"
cp -R go.mod go.sum "$copy"
cp -R internal/protogen "$copy/internal"
cp -R wire/slicepb "$copy/wire"
rm "$copy"/wire/slicepb/*.pb.go
(cd "$copy" && go generate ./wire/...)
compare wire/slicepb

missing=""
for tool in clang-19 llvm-strip-19; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
	echo "check-generated: not compiled again, missing:$missing (apt-get install clang-19 llvm-19)" >&2
	test -z "${CI:-}"
	exit
fi

cp -R bpf "$copy"
(cd "$copy" && go generate ./bpf/...)
compare bpf
echo "check-generated: what is generated is current"
