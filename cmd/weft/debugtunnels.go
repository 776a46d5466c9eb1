package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-mesh/weft/tunnel"
)

// tunnelPeer is a WireGuard peer of one tunnel, as the device has it.
type tunnelPeer struct {
	At        string    `json:"at"`
	Device    string    `json:"device"`
	PublicKey string    `json:"publicKey"`
	Endpoint  string    `json:"endpoint,omitempty"`
	Allowed   []string  `json:"allowed"`
	Handshake time.Time `json:"handshake,omitzero"`
	Received  int64     `json:"receivedBytes"`
	Sent      int64     `json:"sentBytes"`
}

func debugTunnelsCommand() *cobra.Command {
	var here machine
	cmd := &cobra.Command{
		Use:   "tunnels",
		Short: "Show the WireGuard peers on this machine",
		Long: "Show the WireGuard peers on this machine's two tunnels, as the devices have them. It\n" +
			"needs root, but no agent.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			peers, err := tunnelPeers(here.at())
			if err != nil {
				return err
			}
			return show(cmd, []any{peers}, tunnelTable(peers, time.Now()))
		},
	}
	here.add(cmd)
	return cmd
}

func tunnelTable(peers []tunnelPeer, now time.Time) table {
	t := table{columns: columns("AT", "DEVICE", "PUBLIC-KEY", "ALLOWED", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"), name: 1, ordered: true, empty: "no tunnel has a peer"}
	for _, p := range peers {
		shaken := "never"
		if !p.Handshake.IsZero() {
			shaken = age(now.Sub(p.Handshake).Seconds())
		}
		t.rows = append(t.rows, []string{p.At, p.Device, p.PublicKey[:8], list(p.Allowed), p.Endpoint, shaken, size(p.Received), size(p.Sent)})
	}
	return t
}

// tunnelPeers reads both devices of the machine at. Private keys stay where they are.
func tunnelPeers(at string) ([]tunnelPeer, error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("read the tunnels: %w", err)
	}
	defer client.Close()
	peers := []tunnelPeer{}
	for _, name := range tunnel.DefaultDevices {
		device, err := client.Device(name)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("there is no tunnel %s: has `weft agent` run on this machine?", name)
		}
		if err != nil {
			return nil, fmt.Errorf("read tunnel %s: %w", name, err)
		}
		of := make([]tunnelPeer, 0, len(device.Peers))
		for _, p := range device.Peers {
			of = append(of, tunnelPeerOf(at, name, p))
		}
		slices.SortFunc(of, func(a, b tunnelPeer) int { return slices.Compare(a.Allowed, b.Allowed) })
		peers = append(peers, of...)
	}
	return peers, nil
}

func tunnelPeerOf(at, device string, p wgtypes.Peer) tunnelPeer {
	out := tunnelPeer{
		At: at, Device: device, PublicKey: p.PublicKey.String(), Allowed: []string{},
		Handshake: p.LastHandshakeTime, Received: p.ReceiveBytes, Sent: p.TransmitBytes,
	}
	if p.Endpoint != nil {
		out.Endpoint = p.Endpoint.String()
	}
	for _, a := range p.AllowedIPs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			out.Allowed = append(out.Allowed, netip.PrefixFrom(addr.Unmap(), ones).String())
		}
	}
	slices.Sort(out.Allowed)
	return out
}
