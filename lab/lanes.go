package lab

import (
	"fmt"
	"os"
	"time"
)

// laneSockets are where `weft tunnel` serves its two devices.
var laneSockets = []string{"/var/run/wireguard/weft0.sock", "/var/run/wireguard/weft1.sock"}

// lanePatience bounds how long `weft tunnel` may take to do so.
const lanePatience = 20 * time.Second

// startInOrder starts processes of a machine. It waits for `weft tunnel` to serve
// its devices before it starts the agent: where the kernel has WireGuard, an agent
// that finds no devices would make kernel ones.
func startInOrder(n *Node, processes []string) error {
	for _, name := range processes {
		if err := n.Start(name); err != nil {
			return err
		}
		if name == "tunnel" {
			if err := n.awaitLanes(); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitLanes returns when both devices of `weft tunnel` are served.
func (n *Node) awaitLanes() error {
	for deadline := time.Now().Add(lanePatience); ; time.Sleep(5 * time.Millisecond) {
		err := n.lanesServed()
		if err == nil {
			return nil
		}
		if p := n.process("tunnel"); p == nil || !p.running() || time.Now().After(deadline) {
			return fmt.Errorf("tunnel@%s serves no devices: %w%s", n.Full(), err, tail(n.lab.logFile(n.dashed(), "tunnel"), 5))
		}
	}
}

// lanesServed looks for the sockets from inside: if /var/run is a link, it leads
// somewhere else outside.
func (n *Node) lanesServed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sandbox == nil {
		return errNoPower
	}
	return n.thread.Do(func() error {
		for _, socket := range laneSockets {
			if _, err := os.Stat(socket); err != nil {
				return err
			}
		}
		return nil
	})
}
