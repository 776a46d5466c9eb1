package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/enroll"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// What nobody's certificate proves is kept small: requests to enroll that are worked on at
// once, their bytes, and how long they wait for Kubernetes.
const (
	enrollAtOnce   = 16
	maxEnroll      = 4 << 10
	maxToken       = 16 << 10
	enrollPatience = 15 * time.Second
	beginPatience  = 5 * time.Second
	// enrollsPerSecond is how many requests to Kubernetes they may cause.
	enrollsPerSecond = 50
)

// admitNodes prepares for nodes of Kubernetes that join by token, if any may.
func (s *server) admitNodes() error {
	if s.conf.AgentAccount == "" {
		return nil
	}
	namespace, name, err := enroll.ParseAccount(s.conf.AgentAccount)
	if err != nil {
		return err
	}
	// Requests of its own: those to enroll, which anybody can make, must not hold it up.
	own := s.kubernetesCluster()
	ctx, cancel := context.WithTimeout(context.Background(), beginPatience)
	defer cancel()
	switch err := own.CheckBeginning(ctx, namespace, s.cluster.Name, s.Bundle()); {
	case errors.As(err, new(enroll.Unknown)):
		// The nodes that have joined do not need it. Nothing is published before it says.
		s.log.Warn("Kubernetes does not say whether this cluster has another store", "error", err)
	case err != nil:
		return err
	}
	s.enroller = enroll.New(enroll.Config{Cluster: s.kubernetesCluster(), Namespace: namespace, Account: name, IPAM: s.conf.IPAM})
	s.publisher = &enroll.Publisher{
		Cluster: own, Namespace: namespace, Mesh: s.cluster.Name,
		Tell: func(err error) {
			s.publishing.note(s.log, "agents and operators cannot be told how to reach the API servers; retrying", err)
		},
		Now: func() api.Bootstrap {
			return api.Bootstrap{Servers: append(s.otherURLs(), s.self.URL), CA: string(s.Bundle())}
		},
		Operator: func() ([]byte, error) { return os.ReadFile(s.conf.AdminConfig) },
	}
	return nil
}

// publishGrace is how long a new API server may take to read Kubernetes for the first time.
const publishGrace = 10 * time.Second

// publishConcerns says that Kubernetes is not told how to reach the API servers.
func publishConcerns(failing *failing) []api.Concern {
	return failing.concern(api.Concern{
		Object: "Kubernetes", Reason: "BootstrapNotPublished", Grace: publishGrace,
		Message: "agents and operators are not told in Kubernetes how to reach the API servers",
		Next:    "correct that: until then new nodes cannot join, and those that have joined go on; it is tried again",
	})
}

// kubernetesCluster is the Kubernetes cluster that is followed, with connections of its own.
func (s *server) kubernetesCluster() *enroll.Cluster {
	return &enroll.Cluster{
		Connect: func() (kubernetes.Interface, error) {
			conf, err := s.kubernetesAccess()()
			if err != nil {
				return nil, err
			}
			conf.UserAgent, conf.QPS, conf.Burst = "weft-apiserver", enrollsPerSecond, 2*enrollsPerSecond
			return kubernetes.NewForConfig(conf)
		},
		Followed: func(ctx context.Context) (string, error) {
			kv, err := s.store.Get(ctx, wire.KubernetesKey)
			if errors.Is(err, store.ErrNotFound) {
				return "", nil
			}
			return string(kv.Value), err
		},
	}
}

// enrolls says whether a request is one to enroll, which needs no certificate.
func (s *server) enrolls(r *http.Request) bool {
	return s.enroller != nil && r.Method == http.MethodPost && r.URL.Path == "/v1/enroll"
}

// postEnroll gives an agent the join bundle of the node that its token names.
func (s *server) postEnroll(r *http.Request) (any, error) {
	b, err := s.enroll(r)
	if err != nil {
		s.refusals.note(s.log, r.RemoteAddr, err)
		return nil, err
	}
	return b, nil
}

// refusals logs who may not join, and not more often than somebody reads it: anybody may ask.
// The zero value has refused nobody.
type refusals struct {
	mu     sync.Mutex // guards what follows
	logged time.Time
	more   int // since then
}

// refusalPause is the pause between two lines.
const refusalPause = 10 * time.Second

func (f *refusals) note(log *slog.Logger, from string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.logged) < refusalPause {
		f.more++
		return
	}
	log.Warn("a request to join by token was refused", "from", from, "error", err, "unloggedBefore", f.more)
	f.logged, f.more = now, 0
}

func (s *server) enroll(r *http.Request) (*api.JoinBundle, error) {
	if s.enroller == nil {
		return nil, api.NotFound("start it with --agent-account, or add the node with `weft node add`", "this API server admits no nodes by token")
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > maxToken {
		return nil, api.Refuse(http.StatusUnauthorized, "send a service account token of Kubernetes with the audience "+api.TokenAudience, "the request has no token")
	}
	if err := s.enroller.Plausible(token); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), enrollPatience)
	defer cancel()
	if err := s.enrolling.Acquire(ctx, 1); err != nil {
		return nil, api.Refuse(http.StatusServiceUnavailable, "try again", "too many nodes join at once")
	}
	defer s.enrolling.Release(1)
	text, err := io.ReadAll(io.LimitReader(r.Body, maxEnroll))
	if err != nil {
		return nil, api.Invalid("", "the request cannot be read: %v", err)
	}
	var request api.EnrollRequest
	if err := json.Unmarshal(text, &request); err != nil {
		return nil, api.Invalid("", "the request cannot be read: %v", err)
	}
	node, err := s.enroller.Node(ctx, token)
	if err != nil {
		return nil, err
	}
	if request.Node != "" && request.Node != node.Name {
		return nil, api.Refuse(http.StatusForbidden, "give the agent the name that its node has in Kubernetes (--node-name)",
			"the token is for node %s, and the agent calls itself %s", node.Name, request.Node)
	}
	if err := s.space.refusal(); err != nil {
		return nil, err
	}
	r.SetPathValue(api.Added, node.Name)
	return s.registrar.AddFrom(ctx, node, api.OwnerKubernetes)
}
