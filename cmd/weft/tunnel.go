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
		Long: "Serve WireGuard in user space, on nodes whose kernel has none. It is part of the data path:\n" +
			"if it dies, nothing leaves in the clear, and the next start costs one handshake. The agent\n" +
			"configures it like the kernel's WireGuard.",
	}, tunnel.ServeDefaults(), map[string]string{
		"devices":    "names of the two TUN devices",
		"ports":      "UDP ports of the two devices, until the agent sets others",
		"mtu":        "MTU of newly created devices, in bytes",
		"state-dir":  "folder for keys and peers, kept when the process stops",
		"socket-dir": "folder for the devices' configuration sockets",
		"if-needed":  "serve nothing where the kernel has WireGuard, and wait until it is stopped",
	}, func(ctx context.Context, c tunnel.ServeConfig, log *slog.Logger) error {
		c.Log = log
		return tunnel.Serve(ctx, c)
	})
}
