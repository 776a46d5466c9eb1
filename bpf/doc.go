// Package bpf carries Weft's datapath: the C programs, their compiled objects,
// and one typed table per map.
//
// It moves rows into the kernel and programs onto devices. What the rows should
// say is decided in meshagent, policy and service.
package bpf
