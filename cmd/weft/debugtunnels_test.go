package main

import (
	"net"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestTunnelsShowPeersAndNoPrivateKey(t *testing.T) {
	now := time.Now()
	p := tunnelPeerOf("east/n1", "weft0", wgtypes.Peer{
		PublicKey: wgtypes.Key{1}, PresharedKey: wgtypes.Key{2},
		Endpoint:   &net.UDPAddr{IP: net.IPv4(172, 16, 2, 1), Port: 51871},
		AllowedIPs: []net.IPNet{{IP: net.IPv4(10, 2, 1, 0), Mask: net.CIDRMask(24, 32)}}, LastHandshakeTime: now.Add(-3 * time.Second), ReceiveBytes: 2048,
	})
	silent := tunnelPeerOf("east/n1", "weft1", wgtypes.Peer{PublicKey: wgtypes.Key{3}})
	rows := tunnelTable([]tunnelPeer{p, silent}, now).rows
	want := [][]string{
		{"east/n1", "weft0", "AQAAAAAA", "10.2.1.0/24", "172.16.2.1:51871", "3s", "2 KiB", "0 B"},
		{"east/n1", "weft1", "AwAAAAAA", "", "", "never", "0 B", "0 B"},
	}
	for i := range want {
		if !slices.Equal(rows[i], want[i]) {
			t.Errorf("got %q, want %q", rows[i], want[i])
		}
	}
}
