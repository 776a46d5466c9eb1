package scenario

import (
	"bytes"
	"context"
	"fmt"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/meaning"
)

// datapath prints what the BPF maps of machines tell packets, with or without an agent.
func (v *Live) datapath(_ context.Context, args []string) error {
	nodes, err := v.nodes(args)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return usageError{}
	}
	var text bytes.Buffer
	for _, n := range nodes {
		maps, done, err := bpf.Pinned(n.Path(bpf.Defaults().PinDir))
		if err != nil {
			return fmt.Errorf("read the maps of %s: %w", n.Full(), err)
		}
		lines, err := meaning.Of(maps)
		done()
		if err != nil {
			return fmt.Errorf("read the maps of %s: %w", n.Full(), err)
		}
		for _, line := range lines {
			fmt.Fprintf(&text, "%s %s\n", n.Full(), line)
		}
	}
	v.keep(&text, &bytes.Buffer{})
	return nil
}
