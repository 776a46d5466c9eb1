package meshagent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// shares reports who has used up its share of the flow table.
type shares struct {
	datapath Datapath
	tables   *tables.Tables
	trouble  *trouble
	log      *slog.Logger

	// Of the loop alone.
	last map[uint32]bpf.Holding
	said map[uint32]share
}

// share is what is reported about an owner. It does not change while it is reported:
// each change would be a write to etcd, which every agent receives.
type share struct {
	row, text string
	looks     int // since it last asked for more than it may hold
}

const (
	sharesEvery = 2 * time.Second
	// calmLooks is how many times in a row an owner must have had room before it is no
	// longer reported.
	calmLooks = 3
)

// Run works until ctx ends.
func (s *shares) Run(ctx context.Context) error {
	for {
		s.trouble.tell(s.look())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sharesEvery):
		}
	}
}

// look compares what everybody holds with the last look.
func (s *shares) look() error {
	all, err := s.datapath.Holdings()
	if err != nil {
		return err
	}
	limit := s.datapath.Maps().MaxFlows()
	last, was := s.last, s.said
	s.last, s.said = map[uint32]bpf.Holding{}, map[uint32]share{}
	problems := map[string]string{}
	owners := s.owners()
	for _, h := range all {
		s.last[h.Owner] = h
		is, known := was[h.Owner]
		is.looks++
		if last != nil && foundNoRoom(last[h.Owner], h) {
			is.looks = 0
		}
		owner, there := owners[h.Owner]
		if !there || !known && is.looks > 0 || is.looks >= calmLooks {
			continue
		}
		if !known {
			is.row = owner.String()
			is.text = fmt.Sprintf("holds %d of %d connections and may hold no more (its share is %d): new connections replace its unanswered ones or are refused", h.Used, limit, h.Sure)
			s.log.Warn("share of table flows is used up", "owner", is.row, "rows", h.Used, "share", h.Sure, "limit", limit, "refused", h.Refused, "evicted", h.Evicted)
		}
		s.said[h.Owner], problems[is.row] = is, is.text
	}
	for owner, was := range was {
		if _, still := s.said[owner]; !still {
			h := s.last[owner]
			s.log.Info("share of table flows suffices again", "owner", was.row, "rows", h.Used, "share", h.Sure, "refused", h.Refused, "evicted", h.Evicted)
		}
	}
	tables.SetProblems(s.tables, wire.ProblemShares, problems)
	return nil
}

// foundNoRoom reports whether, from then to now, an owner asked for more rows than
// it may hold.
func foundNoRoom(then, now bpf.Holding) bool {
	return now.Refused > then.Refused || now.Evicted > then.Evicted
}

// owner is whose share it is: a pod, or the node itself if empty.
type owner struct{ namespace, pod string }

func (o owner) String() string {
	if o.namespace == "" {
		return o.pod
	}
	return o.namespace + "/" + o.pod
}

// owners names the owners of shares. Pods that are gone have no entry.
func (s *shares) owners() map[uint32]owner {
	all := map[uint32]owner{bpf.SharesNode: {}, bpf.SharesOutside: {pod: wire.NodePortShare}}
	for e := range s.tables.Endpoints.All(s.tables.DB.ReadTxn()) {
		if e.Ifindex != 0 {
			all[uint32(e.Ifindex)] = owner{e.Namespace, e.Pod}
		}
	}
	return all
}
