// Package declared joins and parts clusters as Peer objects of Kubernetes say, again and
// again, until it is so.
//
// Both clusters have an object with the other's name, and the same token:
//
//	east: asks west for an invite, and proves that it has the token   ─► west: has it an object east?
//	east: adds the invite; west, which has been asked, asks in turn   ─► east: has it an object west?
//
// What joining means is decided in package peering, and which objects there are in package
// kubernetes. A peer that was joined by command is nobody else's: an object changes nothing
// about it.
package declared

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// Object is a Peer object.
type Object struct {
	Name, UID string
	// Servers are the other cluster's API servers, as HOST or HOST:PORT.
	Servers []string
	// Secret is the name of the one that holds the token.
	Secret string
}

// Peering joins and parts.
type Peering interface {
	// Records returns the peers; false until they were read.
	Records() ([]wire.Peer, bool)
	// Status returns how their links are.
	Status() []api.PeerStatus
	// EndsSoon says whether the certificate for a peer is to be replaced.
	EndsSoon(cluster string, now time.Time) bool
	// InviteDeclared, AddDeclared and RemoveDeclared refuse what was joined by command.
	InviteDeclared(ctx context.Context, cluster string) (*api.Invite, error)
	AddDeclared(ctx context.Context, in *api.Invite) error
	RemoveDeclared(ctx context.Context, cluster string) error
	// Declared lists the peers of objects, as the store has them.
	Declared(ctx context.Context) ([]string, error)
}

// Kubernetes has tokens, and shows people how it is.
type Kubernetes interface {
	// Token reads one; the error says what to do.
	Token(ctx context.Context, secret string) ([]byte, error)
	// ShowPeer writes an object's status.
	ShowPeer(ctx context.Context, name, uid string, s Status) error
}

// Caller reaches other clusters' API servers.
type Caller interface {
	// Ask sends a request to one of the servers, made for the channel to it.
	Ask(ctx context.Context, servers []string, make func(channel []byte) api.JoinRequest) (answer *api.JoinAnswer, channel []byte, err error)
}

// Config of a Joiner.
type Config struct {
	// Cluster is our own name.
	Cluster    string
	Peering    Peering
	Kubernetes Kubernetes
	Caller     Caller
	Log        *slog.Logger
}

// How often it looks, and how long it waits after an attempt that failed or that has changed
// nothing about a link. All that is read by the clock is in memory.
const (
	lookPause   = 2 * time.Second
	firstRetry  = 2 * time.Second
	lastRetry   = 30 * time.Second
	linkRetry   = 5 * time.Minute
	downGrace   = 5 * time.Second
	askPatience = 10 * time.Second
	// messagePause is how long a message waits that alone has changed.
	messagePause = time.Minute
)

// Joiner joins and parts. Run it once.
type Joiner struct {
	conf Config
	work chan struct{}
	news chan struct{}

	mu      sync.Mutex // guards what follows
	told    bool       // Want was called
	objects map[string]*object
}

// object is what is known of one.
type object struct {
	Object
	// due is when the next attempt may be made, retry how long it then waits.
	due   time.Time
	retry time.Duration
	// failed is why the last attempt has failed; nil if it has not.
	failed *failure
	status Status
	wrote  time.Time // when the status was written; zero: not yet
}

// New makes a Joiner.
func New(c Config) *Joiner {
	return &Joiner{conf: c, work: make(chan struct{}, 1), news: make(chan struct{}, 1), objects: map[string]*object{}}
}

// Held lists the peers of objects that there were.
func (j *Joiner) Held(ctx context.Context) ([]string, error) { return j.conf.Peering.Declared(ctx) }

// Want says which objects there are: all of them.
func (j *Joiner) Want(objects []Object) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.told = true
	next := map[string]*object{}
	for _, o := range objects {
		have := j.objects[o.Name]
		if have == nil || have.UID != o.UID {
			have = &object{}
		}
		if have.UID == "" || have.Secret != o.Secret || !slices.Equal(have.Servers, o.Servers) {
			have.due, have.retry, have.failed, have.wrote = time.Time{}, 0, nil, time.Time{}
		}
		have.Object = o
		next[o.Name] = have
	}
	j.objects = next
	signal(j.work)
}

// Run works until ctx ends.
func (j *Joiner) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		timer := time.NewTimer(lookPause)
		select {
		case <-ctx.Done():
		case <-j.work:
		case <-timer.C:
		}
		timer.Stop()
		j.look(ctx)
	}
	return nil
}

// look brings everything one step nearer to what the objects say.
func (j *Joiner) look(ctx context.Context) {
	records, known := j.conf.Peering.Records()
	if !known {
		return
	}
	j.mu.Lock()
	told := j.told
	var objects []*object
	for _, o := range j.objects {
		objects = append(objects, o)
	}
	j.mu.Unlock()
	if !told {
		return
	}
	slices.SortFunc(objects, func(a, b *object) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range records {
		if r.Declared && !r.Removing && !slices.ContainsFunc(objects, func(o *object) bool { return o.Name == r.Name }) {
			if err := j.conf.Peering.RemoveDeclared(ctx, r.Name); err != nil {
				j.conf.Log.Warn("a peer whose object is gone cannot be removed; retrying", "peer", r.Name, "err", err)
				continue
			}
			j.conf.Log.Info("peer removed, because its object is gone", "peer", r.Name)
		}
	}
	var all sync.WaitGroup // one that does not answer holds up no other
	for _, o := range objects {
		all.Go(func() { j.lookAt(ctx, o) })
	}
	all.Wait()
	signal(j.news)
}

// lookAt brings one nearer, and shows how it is.
func (j *Joiner) lookAt(ctx context.Context, o *object) {
	j.mu.Lock()
	of, due := o.Object, !time.Now().Before(o.due)
	j.mu.Unlock()
	if due && j.needed(of.Name) {
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		err := j.attempt(ctx, of)
		cancel()
		j.mu.Lock()
		o.retry = min(max(2*o.retry, firstRetry), lastRetry)
		o.due = time.Now().Add(o.retry)
		if o.failed = err; err == nil {
			o.retry, o.due = 0, time.Now().Add(linkRetry) // another one would change nothing soon
		}
		j.mu.Unlock()
		if err == nil {
			j.conf.Log.Info("joined as a Peer object says", "peer", of.Name)
		}
	}
	record, link := j.of(of.Name)
	j.mu.Lock()
	next := judge(j.conf.Cluster, of.Name, record, link, o.failed)
	now := time.Now()
	written := o.wrote
	same, alike := next.equal(o.status), next.alike(o.status)
	o.status = next
	j.mu.Unlock()
	if !written.IsZero() && (same || alike && now.Sub(written) < messagePause) || ctx.Err() != nil {
		return
	}
	if err := j.conf.Kubernetes.ShowPeer(ctx, of.Name, of.UID, next); err != nil {
		j.conf.Log.Debug("the status of a Peer object cannot be written; retrying", "peer", of.Name, "err", err)
		return
	}
	j.mu.Lock()
	o.wrote = now
	j.mu.Unlock()
}

// of returns what is known of a peer.
func (j *Joiner) of(name string) (record wire.Peer, link api.PeerStatus) {
	records, _ := j.conf.Peering.Records()
	for _, r := range records {
		if r.Name == name {
			record = r
		}
	}
	for _, s := range j.conf.Peering.Status() {
		if s.Name == name {
			link = s
		}
	}
	return record, link
}

// needed says whether the other cluster is to be asked for an invite.
func (j *Joiner) needed(name string) bool {
	record, link := j.of(name)
	switch {
	case record.Removing, record.Name != "" && !record.Declared:
		return false
	case !record.Connected:
		return true
	case link.Control.State != api.LinkUp && !link.Control.NotUpSince.IsZero() && time.Since(link.Control.NotUpSince) > downGrace:
		return true // it may have parted, and joined again: then our certificate is void
	}
	return j.conf.Peering.EndsSoon(name, time.Now())
}

// attempt asks for an invite and adds it.
func (j *Joiner) attempt(ctx context.Context, o Object) *failure {
	if o.Name == j.conf.Cluster {
		return fail("OwnName", "this is cluster %s itself: a Peer has the name of another cluster", o.Name)
	}
	token, err := j.conf.Kubernetes.Token(ctx, o.Secret)
	if err != nil {
		return fail("TokenUnread", "%v", err)
	}
	if len(token) < api.MinToken {
		return fail("TokenTooShort", "the token in Secret %s has %d characters: at least %d are needed, at random", o.Secret, len(token), api.MinToken)
	}
	answer, channel, err := j.conf.Caller.Ask(ctx, o.Servers, func(channel []byte) api.JoinRequest {
		return api.JoinRequest{From: j.conf.Cluster, To: o.Name, Proof: api.AskProof(token, channel, j.conf.Cluster, o.Name)}
	})
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && refused.Status == http.StatusForbidden:
		return fail("NotAccepted", "%s does not accept: it needs a Peer named %s with the same token (it says: %v)", o.Name, j.conf.Cluster, refused)
	case errors.As(err, &refused):
		return fail("Refused", "%s refuses: %v", o.Name, refused)
	case err != nil:
		return fail("Unreachable", "no API server of %s answers at %s: %v", o.Name, strings.Join(o.Servers, ", "), err)
	case !hmac.Equal(answer.Proof, api.AnswerProof(token, channel, j.conf.Cluster, o.Name)):
		return fail("NotProven", "who answers at %s does not have the token: are these the API servers of %s?", strings.Join(o.Servers, ", "), o.Name)
	case answer.Invite.Cluster != o.Name:
		return fail("WrongCluster", "the API servers of the object are those of cluster %q", answer.Invite.Cluster)
	}
	if err := j.conf.Peering.AddDeclared(ctx, &answer.Invite); err != nil {
		return fail("NotAdded", "%v", err)
	}
	return nil
}

// Answer answers another cluster that asks for an invite.
func (j *Joiner) Answer(ctx context.Context, r api.JoinRequest, channel []byte) (*api.JoinAnswer, error) {
	// Who has not proven anything does not learn what there is.
	no := api.Refuse(http.StatusForbidden, "create a Peer with the name of the cluster that asks, and with the same token", "cluster %s joins nobody who asks like this", j.conf.Cluster)
	j.mu.Lock()
	o := j.objects[r.From]
	var secret string
	if o != nil {
		secret = o.Secret
	}
	j.mu.Unlock()
	if o == nil || r.To != j.conf.Cluster {
		return nil, no
	}
	token, err := j.conf.Kubernetes.Token(ctx, secret)
	if err != nil || len(token) < api.MinToken || !hmac.Equal(r.Proof, api.AskProof(token, channel, r.From, r.To)) {
		return nil, no
	}
	in, err := j.conf.Peering.InviteDeclared(ctx, r.From)
	if err != nil {
		return nil, err
	}
	// It has us as a peer now, maybe again: if our link to it is down, we need not wait.
	j.mu.Lock()
	o.due, o.retry = time.Time{}, 0
	j.mu.Unlock()
	signal(j.work)
	return &api.JoinAnswer{Invite: *in, Proof: api.AnswerProof(token, channel, r.From, r.To)}, nil
}

// failure is why an attempt has failed: in one word, and in a sentence.
type failure struct{ reason, message string }

func fail(reason, format string, args ...any) *failure {
	return &failure{reason, fmt.Sprintf(format, args...)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is noted already
	}
}
