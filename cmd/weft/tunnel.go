package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/tunnel"
)

func tunnelCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "tunnel",
		Short: "Serve WireGuard in user space",
		Long: "Serve WireGuard in user space, on nodes whose kernel has none. It is part of the data\n" +
			"path: when it dies nothing leaves in the clear, and its next start costs one handshake.\n" +
			"The agent configures it as it would the kernel's.",
	}, tunnel.ServeDefaults(), map[string]string{
		"devices":    "names of the two TUN devices",
		"ports":      "UDP ports of the two devices, until the agent says otherwise",
		"mtu":        "MTU of a device that is made new, in bytes",
		"state-dir":  "where keys and peers outlive the process",
		"socket-dir": "where the devices' configuration sockets are",
	}, func(ctx context.Context, c tunnel.ServeConfig, log *slog.Logger) error {
		c.Log = log
		return tunnel.Serve(ctx, c)
	})
}
