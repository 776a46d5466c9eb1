// Package mcs makes services of the cluster set, as the Multi-Cluster Services API means
// them: from the ServiceExports of all clusters follow ServiceImports, and for each a
// service with an address and the backends of every cluster that exports it.
//
// That service has the name that Cilium gives to it, so that the backends travel between
// clusters like those of any global service: packages export and mirror know nothing of it,
// and neither do agents.
package mcs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Registry takes what is derived.
type Registry interface {
	Update(ctx context.Context, d registry.Delta) (*registry.Outcome, error)
}

// Outside is a Kubernetes cluster, in which people look for the objects, and which alone
// gives services their addresses. What it has of them is read like all else of it.
type Outside interface {
	// PutService creates a service, or makes the one of its name like it.
	PutService(ctx context.Context, svc *corev1.Service) error
	DeleteService(ctx context.Context, ns, name string) error
	PutImport(ctx context.Context, i *mcs.ServiceImport) error
	DeleteImport(ctx context.Context, ns, name string) error
	// Imports lists what was put.
	Imports(ctx context.Context) ([]Name, error)
	PutExportStatus(ctx context.Context, ns, name string, s mcs.ServiceExportStatus) error
}

// ErrUndefined says that nobody has installed the definition of ServiceImports.
var ErrUndefined = errors.New("there is no definition of ServiceImports")

// Name is a service's in every cluster.
type Name struct{ Namespace, Name string }

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Config of a Controller.
type Config struct {
	Cluster wire.Cluster
	// State has the cluster's own objects, Store what peers export.
	State    *state.Cache
	Store    store.Store
	Registry Registry
	// Outside is nil if objects do not come from Kubernetes.
	Outside Outside
	Log     *slog.Logger
}

// Controller keeps what is derived equal to what follows from the exports. Run it once only.
type Controller struct {
	conf    Config
	changed chan struct{}

	mu     sync.Mutex // guards what follows
	looked bool
	wrong  map[Name][]api.Concern
}

// New makes a Controller.
func New(c Config) *Controller {
	return &Controller{conf: c, changed: make(chan struct{}, 1), wrong: map[Name][]api.Concern{}}
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return store.Persist(ctx, c.conf.Log, "deriving services of the cluster set", c.follow)
}

// retryAfter is the pause before what was refused is tried again.
const retryAfter = 2 * time.Second

// news is what one of the two sources has to say.
type news struct {
	own   *state.Batch
	peers *store.Batch
}

func (c *Controller) follow(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	arrived := make(chan news)
	send := func(n news) error {
		select {
		case arrived <- n:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	g.Go(func() error {
		return c.conf.State.Follow(ctx, func(b state.Batch) error { return send(news{own: &b}) })
	})
	g.Go(func() error {
		return store.Follow(ctx, c.conf.Store, wire.ServiceExports.AllCachePrefix(), func(b store.Batch) error { return send(news{peers: &b}) })
	})
	g.Go(func() error {
		m := newModel(c.conf.Cluster, c.conf.Outside != nil)
		listed := c.conf.Outside == nil
		var again <-chan time.Time
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case n := <-arrived:
				m.apply(n)
			case <-again:
				again = nil
				maps.Copy(m.dirty, m.failed)
			}
			if !m.complete() {
				continue
			}
			if !listed { // what an earlier term has left there
				left, err := c.conf.Outside.Imports(ctx)
				for _, n := range left {
					m.dirty[n] = true
				}
				listed = err == nil
			}
			if err := c.settle(ctx, m); err != nil {
				return err
			}
			if (len(m.failed) > 0 || !listed) && again == nil {
				again = time.After(retryAfter)
			}
		}
	})
	return g.Wait()
}

// settle derives what has changed, and writes what differs.
func (c *Controller) settle(ctx context.Context, m *model) error {
	names := slices.SortedFunc(maps.Keys(m.dirty), func(a, b Name) int { return strings.Compare(a.String(), b.String()) })
	clear(m.dirty)
	var delta registry.Delta
	var status []store.Op
	of := map[string]Name{}
	down := "" // why Kubernetes takes nothing
	for _, n := range names {
		delete(m.failed, n)
		w := m.derive(n)
		if c.conf.Outside != nil {
			var problem string
			if problem = down; down == "" {
				problem, down = c.outside(ctx, m, n, &w)
			}
			w.problem = cmp.Or(w.problem, problem)
		}
		if w.problem != "" {
			m.failed[n] = true
		}
		c.tell(n, w.concerns(n))
		for _, u := range w.puts {
			of[u.Name] = n
			delta.Put = append(delta.Put, u)
		}
		delta.Delete = append(delta.Delete, w.deletes...)
		status = append(status, w.status...)
	}
	c.mu.Lock()
	c.looked = true
	c.mu.Unlock()
	c.signal()
	if len(status) > 0 {
		if err := store.Write(ctx, c.conf.Store, status...); err != nil {
			return err
		}
	}
	if len(delta.Put)+len(delta.Delete) == 0 {
		return nil
	}
	out, err := c.conf.Registry.Update(ctx, delta)
	if err != nil {
		var answer *api.Error
		if errors.As(err, &answer) {
			return fmt.Errorf("write what follows from service exports: %w", err)
		}
		return err
	}
	for _, p := range out.Refused {
		n, ok := of[p.File]
		if !ok {
			continue
		}
		m.failed[n] = true
		c.conf.Log.Warn("what follows from a service export is refused", "service", n.String(), "object", p.File, "problem", p.Message)
		c.tell(n, []api.Concern{{
			Object: "serviceimport " + n.String(), Reason: "ImportRefused",
			Message: fmt.Sprintf("service %s of the cluster set is not there as it should be: %s", n, p.Message), Next: "it is tried again",
		}})
	}
	return nil
}

// outside writes to Kubernetes, and says what of it fails, and why nothing else will succeed
// now; empty if it may.
func (c *Controller) outside(ctx context.Context, m *model, n Name, w *wanted) (problem, down string) {
	o := c.conf.Outside
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	switch {
	case w.service != nil:
		do(o.PutService(ctx, w.service))
	case w.dropService:
		do(o.DeleteService(ctx, n.Namespace, wire.DerivedName(n.Namespace, n.Name)))
	}
	switch {
	case w.imported != nil:
		if same := m.outside[n]; same != string(wire.Marshal(w.imported)) {
			err := o.PutImport(ctx, w.imported)
			if err == nil {
				m.outside[n] = string(wire.Marshal(w.imported))
			} else if !errors.Is(err, ErrUndefined) {
				do(err)
			}
		}
	default:
		err := o.DeleteImport(ctx, n.Namespace, n.Name)
		if do(err); err == nil {
			delete(m.outside, n)
		}
	}
	if w.exported != nil && m.said[n] != string(wire.Marshal(w.exported)) {
		err := o.PutExportStatus(ctx, n.Namespace, n.Name, *w.exported)
		if do(err); err == nil {
			m.said[n] = string(wire.Marshal(w.exported))
		}
	}
	err := errors.Join(errs...)
	if err == nil {
		return "", ""
	}
	problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	var answer interface{ Status() metav1.Status }
	if !errors.As(err, &answer) {
		down = problem
	}
	return problem, down
}

// Changed implements problems.Source.
func (c *Controller) Changed() <-chan struct{} { return c.changed }

// mostConcerns are shown.
const mostConcerns = 20

// Problems implements problems.Source.
func (c *Controller) Problems() (problems.Rows, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []api.Concern
	for _, n := range slices.SortedFunc(maps.Keys(c.wrong), func(a, b Name) int { return strings.Compare(a.String(), b.String()) }) {
		all = append(all, c.wrong[n]...)
	}
	if len(all) > mostConcerns {
		more := api.Concern{Object: "service exports", Reason: "ExportNotValid", Message: fmt.Sprintf("%d more service exports are not as they should be", len(all)-mostConcerns), Next: "see `weft get serviceexports`"}
		all = append(all[:mostConcerns:mostConcerns], more)
	}
	if len(all) == 0 {
		return problems.Rows{}, c.looked
	}
	return problems.Rows{wire.SourceProblemsKey(api.OwnerMCS): wire.Marshal(all)}, c.looked
}

func (c *Controller) tell(n Name, all []api.Concern) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong[n] = all; len(all) == 0 {
		delete(c.wrong, n)
	}
	c.signal()
}

func (c *Controller) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}
