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

// lanePeer is one WireGuard peer of one lane, as the device has it.
type lanePeer struct {
	At        string    `json:"at"`
	Device    string    `json:"device"`
	PublicKey string    `json:"publicKey"`
	Endpoint  string    `json:"endpoint,omitempty"`
	Allowed   []string  `json:"allowed"`
	Handshake time.Time `json:"handshake,omitzero"`
	Received  int64     `json:"receivedBytes"`
	Sent      int64     `json:"sentBytes"`
}

func debugLanesCommand() *cobra.Command {
	var here machine
	cmd := &cobra.Command{
		Use:   "lanes",
		Short: "Show the WireGuard peers on this machine",
		Long: "Show the WireGuard peers on this machine's two lanes, as the devices have them. It needs\n" +
			"root, but no agent.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			peers, err := lanePeers(here.at())
			if err != nil {
				return err
			}
			return show(cmd, []any{peers}, laneTable(peers, time.Now()))
		},
	}
	here.add(cmd)
	return cmd
}

func laneTable(peers []lanePeer, now time.Time) table {
	t := table{columns: columns("AT", "DEVICE", "PUBLIC-KEY", "ALLOWED", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"), name: 1, ordered: true, empty: "no lane has a peer"}
	for _, p := range peers {
		shaken := "never"
		if !p.Handshake.IsZero() {
			shaken = age(now.Sub(p.Handshake).Seconds())
		}
		t.rows = append(t.rows, []string{p.At, p.Device, p.PublicKey[:8], list(p.Allowed), p.Endpoint, shaken, size(p.Received), size(p.Sent)})
	}
	return t
}

// lanePeers reads both devices of the machine at. Private keys stay where they are.
func lanePeers(at string) ([]lanePeer, error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("read the lanes: %w", err)
	}
	defer client.Close()
	peers := []lanePeer{}
	for _, name := range tunnel.DefaultDevices {
		device, err := client.Device(name)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("there is no lane %s: has `weft agent` run on this machine?", name)
		}
		if err != nil {
			return nil, fmt.Errorf("read lane %s: %w", name, err)
		}
		of := make([]lanePeer, 0, len(device.Peers))
		for _, p := range device.Peers {
			of = append(of, lanePeerOf(at, name, p))
		}
		slices.SortFunc(of, func(a, b lanePeer) int { return slices.Compare(a.Allowed, b.Allowed) })
		peers = append(peers, of...)
	}
	return peers, nil
}

func lanePeerOf(at, device string, p wgtypes.Peer) lanePeer {
	out := lanePeer{
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
