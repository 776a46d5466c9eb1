package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-mesh/weft/lab/fabric"
	"github.com/weft-mesh/weft/lab/traffic"
)

// tunnelPorts are the UDP ports of a node's two tunnels.
var tunnelPorts = []uint16{51871, 51872}

func (v *Live) capture(_ context.Context, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return usageError{}
	}
	name := "capture"
	if len(args) == 2 {
		name = args[1]
	}
	c := v.captures[name]
	if args[0] == "start" {
		if c != nil {
			return misuse("capture %q is already running", name)
		}
		return v.startCapture(name)
	}
	if c == nil {
		return misuse("there is no capture %q", name)
	}
	switch args[0] {
	case "check":
		f, err := c.Findings()
		if err != nil {
			return err
		}
		return judge(f)
	case "stop":
		v.mu.Lock()
		delete(v.captures, name)
		v.mu.Unlock()
		f, err := c.Stop()
		if err != nil {
			return err
		}
		v.Figures.Set(name+"_packets", float64(f.Packets))
		v.Figures.Set(name+"_packets_in_tunnels", float64(f.Encrypted))
		v.Figures.Set(name+"_packets_in_the_clear", float64(f.Marked+f.Exposed))
		return judge(f)
	}
	return usageError{}
}

func (v *Live) startCapture(name string) error {
	var inside []netip.Prefix
	for _, c := range v.Lab.Topology.Clusters {
		inside = append(append(inside, c.PodCIDRs()...), c.ServiceCIDRs()...)
	}
	c, err := v.Lab.Network.StartCapture(fabric.CaptureConfig{Marker: []byte(traffic.Marker), Inside: inside, Encrypted: tunnelPorts})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.captures[name] = c
	return nil
}

// judge fails if anything was seen in the clear, or if some packets were not examined.
func judge(f fabric.Findings) error {
	examples := strings.Join(append([]string{""}, f.Examples...), "\n    ")
	switch {
	case f.Missed > 0:
		return fmt.Errorf("%d packets were not examined: this machine is too busy for the capture", f.Missed)
	case f.Marked > 0:
		return fmt.Errorf("%d packets carry payload in the clear%s", f.Marked, examples)
	case f.Exposed > 0:
		return fmt.Errorf("%d packets with pod or service addresses were seen outside the tunnels%s", f.Exposed, examples)
	}
	return nil
}
