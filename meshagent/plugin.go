package meshagent

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/cni/conflist"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// plugin keeps the CNI plugin where the container runtime finds it, from when this node can
// take pods. A runtime takes its configuration as the sign for that, so an agent that stops
// leaves it: pods that are started meanwhile are told to try again.
type plugin struct {
	conflist conflist.Config
	ready    <-chan struct{}
	trouble  *trouble

	// Of the loop alone: the program as it was installed.
	seen os.FileInfo
}

// pluginTurn is how soon what somebody else removed is restored.
const pluginTurn = 5 * time.Second

func newPlugin(cfg Config, ready <-chan struct{}, t *trouble) *plugin {
	// Should it fail, copying it will say so.
	program, _ := os.Executable()
	return &plugin{ready: ready, trouble: t, conflist: conflist.Config{
		ConfDir: cfg.CNIConfDir, BinDir: cfg.CNIBinDir, Program: program, Socket: cfg.Socket, Spool: cfg.CNISpoolDir,
	}}
}

// Run works until ctx ends.
func (p *plugin) Run(ctx context.Context) error {
	if p.conflist.ConfDir == "" {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-p.ready:
	}
	for ctx.Err() == nil {
		p.trouble.tell(p.install())
		select {
		case <-ctx.Done():
		case <-time.After(pluginTurn):
		}
	}
	return nil
}

// install puts the program there before the configuration that names it.
func (p *plugin) install() error {
	path := filepath.Join(p.conflist.BinDir, conflist.Type)
	now, err := os.Stat(path)
	if err != nil || p.seen == nil || !os.SameFile(now, p.seen) || now.Size() != p.seen.Size() || !now.ModTime().Equal(p.seen.ModTime()) {
		if err := p.conflist.InstallProgram(); err != nil {
			return err
		}
		if p.seen, err = os.Stat(path); err != nil {
			return err
		}
	} else if err := p.conflist.InstallLoopback(); err != nil {
		return err
	}
	return p.conflist.InstallNetwork()
}

// readyForPods says whether pods can be added to this node.
func (a *Agent) readyForPods() api.EndpointReadiness {
	switch {
	case a.cfg.PodsFrom != Requests:
		return api.EndpointReadiness{Why: "this node's agent gives pods their networks by their objects", Hint: byObjectHint}
	case !closed(a.program.Passed()):
		return api.EndpointReadiness{Why: "the agent has not read its cluster's state yet", Hint: "wait, or see `weft status` if this lasts"}
	}
	now := time.Now()
	for p := range tables.ProblemsOf(a.Tables.DB.ReadTxn(), a.Tables, wire.ProblemPrograms) {
		if now.Sub(p.Since) > lastingAfter {
			return api.EndpointReadiness{Limited: true, Why: "traffic is not checked as it should be: " + p.Row + ": " + p.Error, Hint: "`weft debug table problems` lists what is missing"}
		}
	}
	return api.EndpointReadiness{Ready: true}
}
