package bpf

// The object is committed, so that clang-19 is only needed to change it. It
// depends on no header of the system and on no path, and rebuilds byte by byte.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types datapath datapath.c -- -O2 -g -Wall -Werror -mcpu=v3 -nostdinc -ffile-prefix-map=./=bpf/
//go:generate sh -c "LC_ALL=C; export LC_ALL; cat *.c lib/*.h | sha256sum > datapath.sum"
