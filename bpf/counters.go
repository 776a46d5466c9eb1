package bpf

// Counter is how many packets left the datapath for one reason.
type Counter struct {
	Reason  Reason
	Dir     Direction
	Packets uint64
	Bytes   uint64
}

// MaxClusters is the number of rows of table clusters: IDs 1 to 511.
const MaxClusters = 512

// PortRows is the number of rows of table ports: two generations.
const PortRows = 2 * portProto << 16
