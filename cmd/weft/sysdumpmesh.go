package main

import (
	"bytes"
	"context"
	"encoding/json"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/sysdump"
)

// dumpedObjects are the kinds that an archive holds: an allow-list, of kinds that have no
// secrets of their own.
func dumpedObjects() (plurals []string) {
	for _, k := range manifest.Kinds() {
		plurals = append(plurals, k.Plural)
	}
	return plurals
}

// dumpedFlows is how many flows there are of each node that were not forwarded, and how many of
// all.
const dumpedFlows = 2000

// mesh collects what a mesh API server knows.
func (d *dump) mesh(ctx context.Context, dir string, c *api.Client) {
	limited, cancel := bounded(ctx)
	s, err := c.Status(limited)
	cancel()
	d.JSON(dir+"/status.json", s, err)
	if err != nil {
		return // nothing of the rest will answer
	}
	var g errgroup.Group
	g.SetLimit(dumpAtOnce)
	run := func(get func()) { g.Go(func() error { get(); return nil }) }
	run(func() { keep(ctx, d, dir+"/peers.json", c.Peers) })
	run(func() { keep(ctx, d, dir+"/nodes.json", c.Nodes) })
	run(func() { keep(ctx, d, dir+"/servers.json", c.Servers) })
	run(func() { keep(ctx, d, dir+"/identities.json", c.Identities) })
	run(func() { keep(ctx, d, dir+"/services.json", c.Services) })
	for _, plural := range dumpedObjects() {
		run(func() {
			keep(ctx, d, dir+"/objects/"+plural+".json", func(ctx context.Context) (any, error) {
				l, err := c.Objects(ctx, plural, "")
				if err != nil {
					return nil, err
				}
				return redacted(l)
			})
		})
	}
	run(func() { d.flows(ctx, dir+"/flows.jsonl", c, flow.Request{Last: dumpedFlows}) })
	run(func() {
		d.flows(ctx, dir+"/dropped.jsonl", c, flow.Request{Last: dumpedFlows, Filter: flow.Filter{Verdicts: []flow.Verdict{flow.Dropped, flow.Refused, flow.Reset}}})
	})
	for _, n := range s.Nodes {
		run(func() { d.agent(ctx, dir+"/nodes/"+fileName(n.Name), c, n.Name) })
	}
	g.Wait()
}

// redacted are objects without what is not the mesh's.
func redacted(o any) (any, error) {
	plain, err := plainJSON(o)
	if err != nil {
		return nil, err
	}
	return sysdump.Redact(plain), nil
}

// plainJSON is an object as maps and lists.
func plainJSON(o any) (plain any, err error) {
	text, err := json.Marshal(o)
	if err == nil {
		err = json.Unmarshal(text, &plain)
	}
	return plain, err
}

// flows collects flows, as lines of JSON.
func (d *dump) flows(ctx context.Context, name string, c *api.Client, r flow.Request) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	var out bytes.Buffer
	silent, err := c.Observe(ctx, r.Values(), func(line []byte) error {
		out.Write(line)
		return out.WriteByte('\n')
	})
	if err != nil {
		d.Miss(name, err)
	}
	for _, node := range silent {
		d.Miss(name+" of "+node, errSilent)
	}
	if err == nil || out.Len() > 0 {
		d.AddLog(name, out.Bytes())
	}
}

// agent collects what a node's agent says through its cluster.
func (d *dump) agent(ctx context.Context, dir string, c *api.Client, node string) {
	limited, cancel := bounded(ctx)
	l, err := c.Tables(limited, node)
	cancel()
	d.JSON(dir+"/tables.json", l, err)
	if err != nil {
		return
	}
	keep(ctx, d, dir+"/agent.json", func(ctx context.Context) (json.RawMessage, error) {
		return c.GetRaw(ctx, "/v1/nodes/"+node+"/status", nil)
	})
	for _, t := range l.Tables {
		keep(ctx, d, dir+"/tables/"+t.Name+".json", func(ctx context.Context) (*api.Table, error) { return c.Table(ctx, node, t.Name) })
	}
}
