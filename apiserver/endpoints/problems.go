package endpoints

import (
	"fmt"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/wire"
)

// ProblemPrefixes are those of the rows that Problems returns.
func ProblemPrefixes() []string {
	return []string{wire.RefusedPrefix, wire.TroublePrefix, wire.UnwrittenKey}
}

// Changed implements problems.Source.
func (c *Controller) Changed() <-chan struct{} { return c.changed }

func (c *Controller) tell() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Problems implements problems.Source.
func (c *Controller) Problems() (problems.Rows, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := problems.Rows{}
	byNode := map[string][]api.Refusal{}
	for _, r := range c.refusals.current() {
		byNode[r.Node] = append(byNode[r.Node], r)
	}
	for node, refused := range byNode {
		rows[wire.RefusedKey(node)] = wire.Marshal(refused)
	}
	for pod, r := range c.refusals.aboutPods() {
		rows[wire.TroublePrefix+pod] = wire.Marshal(api.Concern{
			Object: "pod " + pod, Node: r.Node, Reason: "ClaimRefused", Since: r.Last,
			Message: fmt.Sprintf("what node %s claims about the pod is refused: %s (%s)", r.Node, r.Reason, r.Example), Next: "restart its agent",
		})
	}
	for o, keys := range c.unwritten {
		if o.kind == "pod" {
			rows[wire.TroublePrefix+o.who] = wire.Marshal((unwritten{o: keys}).concerns()[0])
		}
	}
	if concerns := c.unwritten.concerns(); len(concerns) > 0 {
		rows[wire.UnwrittenKey] = wire.Marshal(concerns)
	}
	return rows, c.looked
}
