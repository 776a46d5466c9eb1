package bpf

import "github.com/cilium/ebpf"

// For the tests of package bpf_test.
var (
	OwnNamespaces = ownNamespaces
	NeedRoot      = needRoot
	SmallConfig   = smallConfig
	AddVeth       = addVeth
	Decode        = decode
	Describe      = describe
)

// SKB is what a test run may say of a packet.
type SKB = skb

// LoadEdited loads programs that were changed before, for lanes with Ethernet headers.
func LoadEdited(c Config, edit func(*ebpf.CollectionSpec)) (*Datapath, error) {
	return load(c, options{ethernetTunnel: true, edit: edit})
}

// Program and Map are those with a name.
func (d *Datapath) Program(name string) *ebpf.Program { return d.progs[name] }
func (d *Datapath) Map(name string) *ebpf.Map         { return d.maps[name] }

// CloseWaitingRoom has no fragment wait for the first of its datagram any more.
func (d *Datapath) CloseWaitingRoom() error { return d.waiting.Put(uint32(0), uint32(0)) }

// Forget is how Sweep deletes flows.
func (d *Datapath) Forget(dead []FlowKey, now uint64) (int, error) { return d.forget(dead, now) }
