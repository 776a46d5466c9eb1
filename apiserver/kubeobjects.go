package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/admission"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/enroll"
	"github.com/weft-mesh/weft/apiserver/sources/kubernetes"
)

// Objects of Weft's own in Kubernetes, and what its API server asks.

// What nobody's certificate proves is kept small here too.
const (
	// maxReview holds two states of the largest object that Kubernetes takes.
	maxReview      = 8 << 20
	reviewsAtOnce  = 4
	reviewPatience = 5 * time.Second
	joinPath       = "/v1/join"
	maxJoin        = 4 << 10
	joinsAtOnce    = 4
	// ofChannel is the header in which an API server tells another one the channel of whoever
	// asked it. It counts only with the certificate of an API server.
	ofChannel = "Weft-Channel"
)

// open says whether a request needs no certificate: those who make them have none of ours, and
// their handlers look at what they prove.
func (s *server) open(r *http.Request) bool {
	if r.Method != http.MethodPost {
		return false
	}
	return s.enrolls(r) || s.conf.Kubernetes && r.URL.Path == joinPath || s.conf.PolicyWebhook != "" && r.URL.Path == admission.Path
}

// anybody says whether there are such requests.
func (s *server) anybody() bool {
	return s.enroller != nil || s.conf.Kubernetes
}

// kubernetesNamespace is Weft's own.
func (c Config) kubernetesNamespace() string {
	if c.KubernetesNamespace != "" {
		return c.KubernetesNamespace
	}
	if namespace, _, err := enroll.ParseAccount(c.AgentAccount); err == nil && c.AgentAccount != "" {
		return namespace
	}
	return api.SystemNamespace
}

// postReview answers the Kubernetes API server about a policy.
func (s *server) postReview(w http.ResponseWriter, r *http.Request) {
	if s.conf.PolicyWebhook == "" {
		unknownPath(w, r)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(reviewPatience))
	ctx, cancel := context.WithTimeout(r.Context(), reviewPatience)
	defer cancel()
	if err := s.reviewing.Acquire(ctx, 1); err != nil {
		refuse(w, api.Refuse(http.StatusServiceUnavailable, "try again", "too many policies are checked at once"))
		return
	}
	defer s.reviewing.Release(1)
	text, err := io.ReadAll(io.LimitReader(r.Body, maxReview+1))
	if err != nil || len(text) > maxReview {
		refuse(w, api.Invalid("", "the request cannot be read, or has more than %d bytes", maxReview))
		return
	}
	out, err := admission.Reviewer{Cluster: s.cluster.Name}.Review(text)
	if err != nil {
		refuse(w, api.Invalid("", "%v", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out) // the caller may have gone away
}

// postJoin gives another cluster an invite, if a Peer object says so.
func (s *server) postJoin(w http.ResponseWriter, r *http.Request) {
	if !s.conf.Kubernetes {
		unknownPath(w, r)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(reviewPatience))
	// Only who ends the connection knows its channel.
	if !s.passedOn(r) {
		channel, err := api.Channel(r.TLS)
		if err != nil {
			refuse(w, api.Invalid("", "the connection has no channel to bind to: %v", err))
			return
		}
		r.Header.Set(ofChannel, base64.StdEncoding.EncodeToString(channel))
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxJoin)
	s.byLeader(func(c *controllers) http.Handler {
		return s.answer(func(r *http.Request) (any, error) { return s.join(r, c) })
	}, nil)(w, r)
}

// passedOn says whether another API server of the cluster passes a request on.
func (s *server) passedOn(r *http.Request) bool {
	return r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName == authority.Root && r.Header.Get(forUser) != ""
}

func (s *server) join(r *http.Request, c *controllers) (any, error) {
	if err := s.joining.Acquire(r.Context(), 1); err != nil {
		return nil, api.Refuse(http.StatusServiceUnavailable, "try again", "too many clusters join at once")
	}
	defer s.joining.Release(1)
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, api.Invalid("", "the request cannot be read: %v", err)
	}
	var request api.JoinRequest
	if err := json.Unmarshal(text, &request); err != nil {
		return nil, api.Invalid("", "the request cannot be read: %v", err)
	}
	channel, err := base64.StdEncoding.DecodeString(r.Header.Get(ofChannel))
	if err != nil || len(channel) == 0 {
		return nil, api.Invalid("", "the request has no channel")
	}
	return c.joiner.Answer(r.Context(), request, channel)
}

// clientAuth is what certificate a caller must have.
func (s *server) clientAuth() tls.ClientAuthType {
	if s.anybody() {
		return tls.VerifyClientCertIfGiven // admit refuses the rest
	}
	return tls.RequireAndVerifyClientCert
}

// webhookKeeper keeps the configuration of the webhook.
func (s *server) webhookKeeper() *admission.Keeper {
	return &admission.Keeper{
		Client: s.kubernetesCluster().Client, Failure: s.conf.PolicyWebhook, URL: s.self.URL, Bundle: s.Bundle,
		Tell: func(err error) {
			s.webhook.note(s.log, "Kubernetes cannot be told to check policies when they are applied; retrying", err)
		},
	}
}

// webhookConcerns says that policies are not checked when they are applied.
func webhookConcerns(failing *failing) []api.Concern {
	return failing.concern(api.Concern{
		Object: "Kubernetes", Reason: "PolicyWebhookNotKept", Grace: publishGrace,
		Message: "policies may not be checked when they are applied in Kubernetes",
		Next:    "correct that, or install with policyWebhook.enabled=false; those that cannot be enforced are told afterwards, as ever",
	})
}

// How often WeftNodes are compared with the nodes. They say nothing that changes with pods or
// by the clock, so that few comparisons write.
const (
	showTurn  = 10 * time.Second
	showRetry = time.Minute
)

// showNodes keeps WeftNodes as the nodes are, until ctx ends.
func (s *server) showNodes(ctx context.Context, o *kubernetes.Objects, trusted func() bool) error {
	var shown map[string]kubernetes.Node
	for {
		pause := showTurn
		if trusted() {
			var err error
			if shown, err = s.showEach(ctx, o, shown); err != nil && ctx.Err() == nil {
				if !errors.Is(err, kubernetes.ErrUndefined) {
					s.log.Debug("WeftNodes cannot be written; retrying", "err", err)
				}
				shown, pause = nil, showRetry
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// showEach writes what differs from what is shown; nil: that is not known.
func (s *server) showEach(ctx context.Context, o *kubernetes.Objects, shown map[string]kubernetes.Node) (map[string]kubernetes.Node, error) {
	want, err := s.weftNodes(ctx)
	if err != nil {
		return nil, err
	}
	if shown == nil {
		if shown, err = o.Nodes(ctx); err != nil {
			return nil, err
		}
	}
	for name, n := range want {
		was, there := shown[name]
		if there && was.UID != n.UID { // of a Node that is gone
			if err := o.HideNode(ctx, name); err != nil {
				return nil, err
			}
			there = false
		}
		if there && sameNode(was, n) {
			continue
		}
		if err := o.ShowNode(ctx, n, !there); err != nil {
			return nil, err
		}
		shown[name] = n
	}
	for name := range shown {
		if _, wanted := want[name]; wanted {
			continue
		}
		if err := o.HideNode(ctx, name); err != nil {
			return nil, err
		}
		delete(shown, name)
	}
	return shown, nil
}

func sameNode(a, b kubernetes.Node) bool {
	return a.UID == b.UID && a.State == b.State && a.Message == b.Message &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.MeshAddresses, b.MeshAddresses)
}

// weftNodes are the nodes as WeftNodes show them: also those that an operator has added.
func (s *server) weftNodes(ctx context.Context) (map[string]kubernetes.Node, error) {
	register, err := s.registrar.Register(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]kubernetes.Node{}
	for _, n := range s.nodeRows(register, nil) {
		reg := register[n.Name]
		uid := ""
		if reg.Source == api.OwnerKubernetes {
			uid = reg.UID
		}
		var wrong []string
		for _, p := range n.Problems {
			wrong = append(wrong, p.Table+": "+p.Error)
		}
		slices.Sort(wrong)
		out[n.Name] = kubernetes.Node{
			Name: n.Name, UID: uid, State: n.State, Message: strings.Join(slices.Compact(wrong), "; "),
			Addresses: texts(n.Addresses), PodCIDRs: texts(n.PodCIDRs), MeshAddresses: texts(n.Internals),
		}
	}
	return out, nil
}

func texts[T netip.Addr | netip.Prefix](all []T) (out []string) {
	for _, one := range all {
		switch v := any(one).(type) {
		case netip.Addr:
			out = append(out, v.String())
		case netip.Prefix:
			out = append(out, v.String())
		}
	}
	return out
}

// runKubernetesObjects works on them for one term.
func (s *server) runKubernetesObjects(run func(func(context.Context) error), c *controllers) {
	if !s.conf.Kubernetes {
		c.joiner.Want(nil) // nothing is wrong with any; what they have joined stays
		return
	}
	run(c.joiner.Run)
	run(func(ctx context.Context) error { return s.showNodes(ctx, c.objects, c.kubernetes.Trusted) })
	if s.conf.PolicyWebhook != "" {
		run(s.webhookKeeper().Run)
	}
}
