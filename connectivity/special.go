package connectivity

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
)

// sealedBytes is how much is sent to see it in the tunnels' counters.
const sealedBytes = 1 << 20

// tunnelPeer is the part of `weft debug tunnels` that counts.
type tunnelPeer struct {
	Allowed  []string `json:"allowed"`
	Received int64    `json:"receivedBytes"`
	Sent     int64    `json:"sentBytes"`
}

// counted adds up what the tunnels to whoever has an address have carried.
func counted(peers []tunnelPeer, addr netip.Addr) (received, sent int64, found bool) {
	for _, p := range peers {
		if slices.ContainsFunc(p.Allowed, func(text string) bool {
			prefix, err := netip.ParsePrefix(text)
			return err == nil && prefix.Contains(addr)
		}) {
			received, sent, found = received+p.Received, sent+p.Sent, true
		}
	}
	return received, sent, found
}

// sealed sends something to a pod elsewhere, and compares what the tunnels of both nodes have
// carried before and after.
func sealed(server string) func(ctx context.Context, a *attempt) Finding {
	return func(ctx context.Context, a *attempt) Finding {
		step := asks("client", server+":8080").bytes(sealedBytes)
		tried := step.String() + ", and the tunnels' counters on both nodes before and after"
		expected := fmt.Sprintf("each side's tunnel carries at least the %d bytes, each way", sealedBytes)
		site, facts, name := a.site, a.facts, server
		if cut, ok := strings.CutPrefix(server, "peer/"); ok {
			site, facts, name = a.task.peer, a.peer, cut
		}
		place := strings.TrimPrefix(name, "server-")
		near, far := a.facts.Addresses["client"][0], facts.Addresses[name][0]
		look := func() (out [4]int64, err error) {
			for i, end := range []struct {
				site Site
				node string
				addr netip.Addr
			}{{a.site, a.facts.Nodes["near"], far}, {site, facts.Nodes[place], near}} {
				text, err := end.site.Weft(ctx, end.node, "debug", "tunnels", "-o", "json")
				if err != nil {
					return out, err
				}
				var peers []tunnelPeer
				if err := json.Unmarshal(text, &peers); err != nil {
					return out, fmt.Errorf("read the tunnels of %s: %w", end.node, err)
				}
				received, sent, found := counted(peers, end.addr)
				if !found {
					return out, fmt.Errorf("no tunnel of node %s leads to %v", end.node, end.addr)
				}
				out[2*i], out[2*i+1] = received, sent
			}
			return out, nil
		}
		before, err := look()
		if err != nil {
			return problem(tried, expected, err)
		}
		if f := a.steps(ctx, steps(step)); !f.OK {
			return f
		}
		for deadline := time.Now().Add(a.Patience); ; {
			after, err := look()
			if err != nil {
				return problem(tried, expected, err)
			}
			what := carried(before, after)
			if what == "" {
				return Finding{OK: true}
			}
			if time.Now().After(deadline) || pause(ctx, again) != nil {
				return Finding{Tried: tried, Expected: expected, Happened: what}
			}
		}
	}
}

// carried says which counter did not grow by what was sent, or "". They are what the client's
// node and the server's have received and sent.
func carried(before, after [4]int64) string {
	for i, what := range []string{"the client's node received", "the client's node sent", "the server's node received", "the server's node sent"} {
		if grown := after[i] - before[i]; grown < sealedBytes {
			return fmt.Sprintf("%s %d bytes through the tunnel", what, grown)
		}
	}
	return ""
}

// failoverTries is how often the service is asked; each pod has half a chance each time.
const failoverTries = 60

// failover takes the global service's pod of the cluster away, and gives it back.
func failover(ctx context.Context, a *attempt) Finding {
	both := asks("client", "svc/global:80").allOf("global-0", "peer/global-0").times(failoverTries)
	if f := a.steps(ctx, steps(both)); !f.OK {
		return f
	}
	// Whatever happens, the service gets its pod back.
	defer a.site.Scale(context.WithoutCancel(ctx), 1) //nolint:errcheck // the run's end removes it all
	if err := a.site.Scale(ctx, 0); err != nil {
		return problem("scale the service's pods to 0", "there are none", err)
	}
	f := a.steps(ctx, steps(asks("client", "svc/global:80").by("peer/global-0").times(failoverTries)))
	if !f.OK {
		f.Tried += ", with the service's pods here scaled to 0"
		return f
	}
	if err := a.site.Scale(ctx, 1); err != nil {
		return problem("scale the service's pods to 1", "there is one again", err)
	}
	if f = a.steps(ctx, steps(both)); !f.OK {
		f.Tried += ", with the service's pods here scaled to 1 again"
	}
	return f
}

// eventually waits until a status has nothing wrong.
func (a *attempt) eventually(ctx context.Context, expected string, wrong func(s *api.Status, f *Facts) []string) Finding {
	for deadline := time.Now().Add(a.Patience); ; {
		s, err := a.site.Status(ctx)
		var lines []string
		if err != nil {
			lines = []string{err.Error()}
		} else {
			lines = wrong(s, a.facts)
		}
		if len(lines) == 0 {
			return Finding{OK: true}
		}
		if time.Now().After(deadline) || pause(ctx, again) != nil {
			return Finding{Tried: "weft status of " + a.facts.Name, Expected: expected, Happened: strings.Join(lines, "; ")}
		}
	}
}

func well(ctx context.Context, a *attempt) Finding {
	return a.eventually(ctx, "nothing needs attention", concerns)
}

// concerns are the lines of a status.
func concerns(s *api.Status, _ *Facts) (lines []string) {
	for _, c := range s.Concerns {
		lines = append(lines, c.String())
	}
	return lines
}

func nodesReady(ctx context.Context, a *attempt) Finding {
	return a.eventually(ctx, "the agents of all nodes are ready", unready)
}

// unready are Kubernetes' nodes whose agents are not ready.
func unready(s *api.Status, f *Facts) (lines []string) {
	for _, name := range f.All {
		i := slices.IndexFunc(s.Nodes, func(n api.NodeStatus) bool { return n.Name == name })
		switch {
		case i < 0:
			lines = append(lines, "node "+name+" of Kubernetes is not in the mesh")
		case s.Nodes[i].State != api.NodeReady:
			lines = append(lines, "node "+name+" is "+s.Nodes[i].State)
		}
	}
	return lines
}

func peersUp(ctx context.Context, a *attempt) Finding {
	return a.eventually(ctx, "the links to all peers are up and their exports are read in full", peersDown)
}

// peersDown are peers that are not as they should be.
func peersDown(s *api.Status, _ *Facts) (lines []string) {
	for _, p := range s.Peers {
		if p.Control.State != api.LinkUp {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("the link to %s is %s %s", p.Name, p.Control.State, p.Control.Error)))
			continue
		}
		for _, m := range p.Mirrors {
			if !m.Synced {
				lines = append(lines, fmt.Sprintf("%s of %s have not been read in full", m.Resource, p.Name))
			}
		}
	}
	return lines
}
