package model

type masks struct{}

func newMasks() masks { return masks{} }

func (n *Node) toClient(p *Packet) Outcome { return Outcome{} }

func (n *Node) FromDevice(device int, frame []byte) Outcome { return Outcome{} }
func (n *Node) ToDevice(frame []byte) Outcome               { return Outcome{} }
