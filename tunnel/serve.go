package tunnel

import (
	"fmt"
	"log/slog"
)

// Defaults of names and ports, the same for every process of a node.
var (
	DefaultDevices = [LaneCount]string{"weft0", "weft1"}
	DefaultPorts   = [LaneCount]uint16{51871, 51872}
)

const (
	// DefaultSocketDir is where wgctrl looks for userspace devices; it cannot
	// be told otherwise.
	DefaultSocketDir = "/var/run/wireguard"
	// DefaultServeStateDir holds what `weft tunnel` restores at its start.
	DefaultServeStateDir = "/var/lib/weft/tunnel"
)

// ServeConfig configures the `weft tunnel` process.
type ServeConfig struct {
	// Devices are the TUN devices' names.
	Devices [LaneCount]string
	// Ports are the UDP ports the devices listen on until told otherwise.
	Ports [LaneCount]uint16
	// MTU a new device gets; one that is there keeps its own.
	MTU int
	// StateDir holds each device's configuration, keys included, 0600.
	StateDir string
	// SocketDir holds the configuration sockets.
	SocketDir string
	Log       *slog.Logger
}

// ServeDefaults is the configuration of an ordinary node.
func ServeDefaults() ServeConfig {
	return ServeConfig{
		Devices:   DefaultDevices,
		Ports:     DefaultPorts,
		MTU:       1420,
		StateDir:  DefaultServeStateDir,
		SocketDir: DefaultSocketDir,
		Log:       slog.Default(),
	}
}

func laneName(lane int) string { return fmt.Sprintf("lane %d", lane) }
