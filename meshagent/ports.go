package meshagent

import (
	"log/slog"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// ports reports while new connections find no source port: pods' with the world, and those
// that would share one towards a backend.
type ports struct {
	datapath Datapath
	tables   *tables.Tables
	log      *slog.Logger

	// Of the loop alone.
	known bool
	last  uint64 // packets for which there was none
	looks int    // since there were more
	said  bool
}

// noPort does not change while it is reported: each change would be a write to etcd.
const noPort = "new connections to some address find no free source port and are dropped (no-port)"

// look compares what was dropped with the last look. What lacked ports is named until there
// were enough for calmLooks.
func (p *ports) look() error {
	counters, err := p.datapath.Counters()
	if err != nil {
		return err
	}
	var now uint64
	for _, c := range counters {
		if c.Reason == bpf.ReasonNoPort {
			now += c.Packets
		}
	}
	more := now - p.last
	p.looks++
	if p.known && now > p.last {
		p.looks = 0
	}
	was := p.said
	p.said = p.looks == 0 || was && p.looks < calmLooks
	p.known, p.last = true, now
	switch {
	case p.said && !was:
		p.log.Warn("new connections find no free source port", "dropped", more)
	case was && !p.said:
		p.log.Info("there are enough source ports for new connections again", "dropped", now)
	case !p.said:
		return nil
	}
	problems := map[string]string{}
	if p.said {
		problems[""] = noPort
	}
	tables.SetProblems(p.tables, wire.ProblemMasquerades, problems)
	return nil
}
