package apiserver

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/store"
)

// Two stores of one cluster would each be believed by a part of its nodes and peers. So a
// store that is lost never begins again by itself where its cluster is still known, a store
// is not restored while the others of its cluster run, and one from before a restoration does
// not start any more.

// beginning is what an API server knows that has no store and was not invited by others.
type beginning struct {
	cluster, dataDir string
	// admin is the file of the operator's context. known says that it has one of this
	// cluster, ours that the authority in the data folder has issued it.
	admin       string
	known, ours bool
	others      []other // API servers of this cluster that answer
}

// other is an API server of the cluster that answers.
type other struct{ url, name string }

func (o other) String() string { return o.name + " at " + o.url }

// mayBegin says why no new store may begin; nil if it may.
func mayBegin(b beginning) error {
	switch {
	case len(b.others) > 0:
		return fmt.Errorf("%s holds no store, but cluster %s has one: its API server %s answers. If this one's disk was lost, run `weft server replace NAME` there and start this one with join; the first API server has no join bundle: run `weft server delete NAME` and `weft server add NAME …` instead", b.dataDir, b.cluster, list(b.others))
	case b.known && !b.ours:
		return fmt.Errorf("%s holds neither a store nor the certificate authority of cluster %s, which this machine has served (%s names it): restore a backup with `weft restore FILE`. Without one, move %[3]s away to start a new cluster of that name; its nodes and peers need new bundles and invites", b.dataDir, b.cluster, b.admin)
	}
	return nil
}

func list(others []other) string {
	var texts []string
	for _, o := range others {
		texts = append(texts, o.String())
	}
	return strings.Join(texts, ", ")
}

// othersPatience is how long other API servers and members of the store may take to show
// that they are there.
const othersPatience = 2 * time.Second

// checkBeginning refuses to begin a new store for a cluster that has had one. It runs before
// a new authority is made.
func checkBeginning(ctx context.Context, conf Config) error {
	if embedded.Begun(filepath.Join(conf.DataDir, "etcd")) || len(conf.EtcdEndpoints) > 0 || conf.Join != "" {
		return nil
	}
	b := beginning{cluster: conf.Cluster, dataDir: conf.DataDir, admin: conf.AdminConfig}
	x, known := adminContext(conf)
	if !known {
		return nil
	}
	roots := x509.NewCertPool()
	if ca, err := os.ReadFile(filepath.Join(conf.DataDir, "pki", "ca.crt")); err == nil {
		roots.AppendCertsFromPEM(ca)
	}
	b.known, b.ours, b.others = true, signed(x.Cert, roots), othersOf(ctx, x)
	return mayBegin(b)
}

// adminContext is the operator's context of this cluster, if there is one.
func adminContext(conf Config) (api.Context, bool) {
	file, err := api.LoadConfig(conf.AdminConfig)
	if err != nil {
		return api.Context{}, false // there is none yet, or writeAdmin says what is wrong with it
	}
	i := slices.IndexFunc(file.Contexts, func(x api.Context) bool { return x.Name == conf.Cluster })
	if i < 0 {
		return api.Context{}, false
	}
	return file.Contexts[i], true
}

// othersOf asks the API servers that a context names, all at once, and returns those that
// answer. This one does not listen yet.
func othersOf(ctx context.Context, x api.Context) (all []other) {
	ctx, cancel := context.WithTimeout(ctx, othersPatience)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, url := range append([]string{x.Server}, x.Servers...) {
		one := x
		one.Server, one.Servers = url, nil
		c, err := api.NewClient(one)
		if err != nil {
			continue
		}
		asked.Go(func() {
			defer c.Close()
			l, err := c.Servers(ctx)
			if err != nil || l.Cluster != x.Name {
				return
			}
			name := "that"
			for _, s := range l.Servers {
				if s.Answers {
					name = s.Name
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, other{url, name})
		})
	}
	asked.Wait()
	slices.SortFunc(all, func(a, b other) int { return strings.Compare(a.url, b.url) })
	return all
}

// checkRestored refuses to start a store of several members that one of the others has left
// behind: it was restored from a backup, or begun again, while this one did not run.
func (f *foundation) checkRestored(ctx context.Context, listed []embedded.Listing) error {
	ctx, cancel := context.WithTimeout(ctx, othersPatience)
	defer cancel()
	var ids []uint64
	var self uint64
	for _, one := range listed {
		ids = append(ids, one.ID)
		if one.Name == f.conf.name() {
			self = one.ID
		}
	}
	answers := make([]answer, len(listed))
	var asked sync.WaitGroup
	for i, one := range listed {
		if one.ID == self || len(one.Clients) == 0 {
			continue
		}
		asked.Go(func() { answers[i] = f.ask(ctx, one.Clients, self, ids) })
	}
	asked.Wait()
	// Who still answers as a member knows best what became of this one.
	if i := slices.Index(answers, ofAnother); i >= 0 && !slices.Contains(answers, ofThis) {
		return fmt.Errorf("%s is from before a restoration: API server %s serves another store of cluster %s, which does not know this one. To have this one join that store, move %[1]s away, run `weft server replace %s` there, and start this one again with join and its bundle", f.etcdDir(), listed[i].Name, f.conf.Cluster, f.conf.name())
	}
	return nil
}

// answer is what a member's answer says about the store that it serves.
type answer int

const (
	none answer = iota
	ofThis
	ofAnother
)

// ask asks a member at its addresses.
func (f *foundation) ask(ctx context.Context, clients []string, self uint64, listed []uint64) answer {
	s, err := store.Dial(store.DialConfig{Endpoints: clients, TLS: f.rootTLS()})
	if err != nil {
		return none
	}
	defer s.Close()
	status, err := s.Ask(ctx, clients[0], othersPatience)
	if err != nil {
		return none
	}
	theirs, err := s.KnownMembers(ctx)
	if err != nil {
		return none
	}
	if members.AnotherStore(self, listed, status.ID, theirs) {
		return ofAnother
	}
	return ofThis
}
