package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// memory is the register of nodes as this API server last saw it, in a file beside the
// store. An emptied store does not know which nodes it had: they keep working with what
// they have but can no longer connect, and without the file nobody could name them.
type memory struct {
	path  string
	store store.Store
	log   *slog.Logger

	mu   sync.Mutex // guards what follows
	know known
	// failed is since when the file cannot be written, and why.
	failed    time.Time
	failedWhy error
}

// known is what the file holds.
type known struct {
	// Generation is that of the store that Nodes is the register of.
	Generation string `json:"generation"`
	// Rebuilt is set once a store before this one was lost.
	Rebuilt bool                         `json:"rebuilt,omitempty"`
	Nodes   map[string]wire.Registration `json:"nodes,omitempty"`
	// Lost are nodes of an emptied store that have not been added again yet.
	Lost map[string]wire.Registration `json:"lost,omitempty"`
}

func openMemory(dir, generation string, s store.Store, log *slog.Logger) (*memory, error) {
	m := &memory{path: filepath.Join(dir, "nodes.json"), store: s, log: log}
	text, err := os.ReadFile(m.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remember nodes: %w", err)
	}
	if jsonErr := json.Unmarshal(text, &m.know); err == nil && jsonErr != nil {
		d, err := statefile.PutAside(m.path)
		if err != nil {
			return nil, fmt.Errorf("remember nodes: %w", err)
		}
		log.Error("a damaged file was put aside; nodes of a lost store are not known", "file", m.path, "as", d.Aside, "err", jsonErr)
		m.know = known{}
	}
	// Older files have no Rebuilt; in those, lost nodes tell.
	m.know.Rebuilt = m.know.Rebuilt || len(m.know.Lost) > 0
	if m.know.Lost == nil {
		m.know.Lost = map[string]wire.Registration{}
	}
	if m.know.Generation != generation {
		m.know.Rebuilt = m.know.Rebuilt || m.know.Generation != ""
		maps.Copy(m.know.Lost, m.know.Nodes)
		m.know.Nodes = nil
	}
	m.know.Generation = generation
	if m.know.Nodes == nil {
		m.know.Nodes = map[string]wire.Registration{}
	}
	return m, nil
}

// Run follows the register, and what is forgotten at other API servers, until ctx ends.
func (m *memory) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return store.Persist(ctx, m.log, "remembering nodes", func(ctx context.Context) error {
			return store.Follow(ctx, m.store, wire.RegistrationsPrefix, m.apply)
		})
	})
	g.Go(func() error {
		return store.Persist(ctx, m.log, "forgetting nodes", func(ctx context.Context) error {
			return store.Follow(ctx, m.store, wire.ForgottenPrefix, m.drop)
		})
	})
	return g.Wait()
}

// drop forgets lost nodes of which another API server was told that they are not coming
// back: each has its own file.
func (m *memory) drop(b store.Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.know.Lost)
	for _, ev := range b.Events {
		if name, ok := wire.ParseForgottenKey(ev.Key); ok && !ev.Deleted {
			delete(m.know.Lost, name)
		}
	}
	if len(m.know.Lost) == before {
		return nil
	}
	return m.saveLocked()
}

func (m *memory) apply(b store.Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.Complete {
		clear(m.know.Nodes)
	}
	for _, ev := range b.Events {
		name, ok := wire.ParseRegistrationKey(ev.Key)
		if !ok {
			continue
		}
		delete(m.know.Nodes, name)
		if r, err := wire.Unmarshal[wire.Registration](ev.Value); err == nil && !ev.Deleted {
			m.know.Nodes[name] = r
			delete(m.know.Lost, name)
		}
	}
	return m.saveLocked()
}

// rebuilt reports whether an earlier store was lost, and returns its nodes that have not
// been added again yet, in order of name.
func (m *memory) rebuilt() (yes bool, lost []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.know.Rebuilt, slices.Sorted(maps.Keys(m.know.Lost))
}

// forget drops a lost node that is not coming back, at every API server; false if it is not
// a lost node.
func (m *memory) forget(ctx context.Context, node string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, lost := m.know.Lost[node]; !lost {
		return false, nil
	}
	if err := store.Write(ctx, m.store, store.Put(wire.ForgottenKey(node), wire.TimeText(time.Now()))); err != nil {
		return false, err
	}
	delete(m.know.Lost, node)
	return true, m.saveLocked()
}

func (m *memory) saveLocked() error {
	if err := api.WriteSecretFile(m.path, wire.Marshal(m.know)); err != nil {
		if m.failed.IsZero() {
			m.failed = time.Now()
		}
		m.failedWhy = fmt.Errorf("remember nodes: %w", err)
		return m.failedWhy
	}
	m.failed, m.failedWhy = time.Time{}, nil
	return nil
}

// concerns says that the file is behind, and what an operator has to do after the store was
// emptied, node by node.
func (m *memory) concerns(cluster string) (out []api.Concern) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failedWhy != nil {
		out = append(out, api.Concern{
			Object: "API server", Reason: "FileNotWritten", Since: m.failed, Message: m.failedWhy.Error(),
			Next: "make the file writable: if the store is lost before that, the names of its nodes are lost too",
		})
	}
	if len(m.know.Lost) == 0 {
		return out
	}
	out = append(out, api.Concern{
		Object: "cluster " + cluster, Reason: "StoreEmptied", Message: "the store of cluster " + cluster + " was emptied",
		Next: "add its nodes again as follows, apply its manifests, add its peers, then run `weft node release`",
	})
	for _, r := range m.know.Lost {
		out = append(out, api.Concern{
			Object: "node " + r.Name, Node: r.Name, Reason: "StoreEmptied", Message: "node " + r.Name + " is not let in",
			Next: fmt.Sprintf("`weft node add %s --address %s --pod-cidr %s --write join.yaml` lets it in again (if it is gone: `weft node delete %s`)",
				r.Name, joined(r.Addresses), joined(r.PodCIDRs), r.Name),
		})
	}
	return out
}

func joined[T fmt.Stringer](all []T) string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}
