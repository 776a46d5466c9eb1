package paths

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// mostPaths bounds the single paths that are reported, oldest first; the node itself
// shows all.
const mostPaths = 32

// unwell sums up which paths have been down or limited for a while. A cluster none of
// whose probed nodes answers is one entry, however large it is. The result does not
// change with every probe, so that it is written again only after a real change. endpoint is
// where the tunnel to a node ends.
func unwell(observations []probe.Observation, mtu int, endpoint func(key string) netip.Addr, now time.Time, lasting time.Duration) []wire.NodePath {
	type count struct {
		probed, down int
		since        time.Time
	}
	clusters := map[string]*count{}
	var single []wire.NodePath
	for _, o := range observations {
		c := clusters[o.Target.Cluster]
		if c == nil {
			c = &count{}
			clusters[o.Target.Cluster] = c
		}
		c.probed++
		p := wire.NodePath{Cluster: o.Target.Cluster, Node: o.Target.Node}
		switch {
		case o.State == probe.Down:
			p.Since = o.Since
			c.down++
			if o.Since.After(c.since) {
				c.since = o.Since // all are down since the last one went
			}
		case o.State == probe.Up && o.Limit > 0:
			at := endpoint(o.Target.Name())
			p.Limit, p.Sends, p.Since = tunnel.Outer(o.Limit, mtu, at), tunnel.Outer(mtu, mtu, at), o.LimitSince
		default:
			continue
		}
		if now.Sub(p.Since) >= lasting {
			p.Since = p.Since.UTC().Truncate(time.Millisecond)
			single = append(single, p)
		}
	}
	var all []wire.NodePath
	for name, c := range clusters {
		if c.down == c.probed && now.Sub(c.since) >= lasting {
			all = append(all, wire.NodePath{Cluster: name, Probed: c.probed, Since: c.since.UTC().Truncate(time.Millisecond)})
			single = slices.DeleteFunc(single, func(p wire.NodePath) bool { return p.Cluster == name })
		}
	}
	slices.SortFunc(all, func(a, b wire.NodePath) int { return cmp.Compare(a.Cluster, b.Cluster) })
	slices.SortStableFunc(single, func(a, b wire.NodePath) int { return a.Since.Compare(b.Since) })
	return append(all, single[:min(len(single), mostPaths)]...)
}

// tell makes these the reported paths.
func (l *Liveness) tell(paths []wire.NodePath) {
	l.telling.Lock()
	defer l.telling.Unlock()
	if slices.Equal(paths, l.unwell) {
		return
	}
	l.unwell = paths
	close(l.news)
	l.news = make(chan struct{})
}

// Unwell returns the paths to report, and a channel that is closed when they change.
func (l *Liveness) Unwell() ([]wire.NodePath, <-chan struct{}) {
	l.telling.Lock()
	defer l.telling.Unlock()
	return l.unwell, l.news
}
