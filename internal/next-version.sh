#!/bin/bash
# Builds weft as its next version might be, for scenarios that upgrade and go back:
#
#	internal/next-version.sh FILE
#
# It differs where versions differ in the kernel. Each BPF program has another text, so
# attaching it replaces one generation by another; and maps that start empty in a new version
# (counters, events, fragments) have the layout after this one, under pins of their own beside
# those of this version. The tree stays as it is: what differs is laid over it while building.
set -euo pipefail
out=$(realpath -m "${1:?usage: internal/next-version.sh FILE}")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# patched FILE SED… writes a copy of a file in which each expression changes something.
patched() {
	local file=$1 before
	cp "$file" "$work/$(basename "$file")"
	shift
	for expression; do
		before=$(cksum <"$work/$(basename "$file")")
		sed -i -E "$expression" "$work/$(basename "$file")"
		[[ $(cksum <"$work/$(basename "$file")") != "$before" ]] || {
			echo "next-version: nothing in $file matches $expression" >&2
			exit 1
		}
	done
}
next=()
for map in counters events fragments; do
	version=$(sed -nE "s/.*inner\(\"$map\", ([0-9]+)\).*/\1/p" bpf/described.go)
	next+=("s/inner\\(\"$map\", $version\\)/inner(\"$map\", $((version + 1)))/")
done
patched bpf/described.go "${next[@]}"
patched bpf/datapath_bpfel.go 's/^func loadDatapath\(\)/func loadDatapathOfThisVersion()/'
cat >"$work/next.go" <<'GO'
package bpf

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// loadDatapath puts an instruction that changes nothing in front of every program that stays
// attached.
func loadDatapath() (*ebpf.CollectionSpec, error) {
	spec, err := loadDatapathOfThisVersion()
	if err != nil {
		return nil, err
	}
	for _, p := range spec.Programs {
		if p.Type == ebpf.Tracing { // whose first instruction is adapted to the kernel
			continue
		}
		first := asm.Mov.Imm(asm.R0, 0)
		first.Metadata, p.Instructions[0].Metadata = p.Instructions[0].Metadata, asm.Metadata{}
		p.Instructions = append(asm.Instructions{first}, p.Instructions...)
	}
	return spec, nil
}
GO
cat >"$work/overlay.json" <<JSON
{"Replace": {
	"$PWD/bpf/described.go": "$work/described.go",
	"$PWD/bpf/datapath_bpfel.go": "$work/datapath_bpfel.go",
	"$PWD/bpf/next.go": "$work/next.go"
}}
JSON
CGO_ENABLED=0 go build -trimpath -overlay "$work/overlay.json" -ldflags '-s -w -X main.version=next' -o "$out" ./cmd/weft
