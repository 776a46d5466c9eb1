package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/wire"
)

// mostLines is how many mistakes have a line each in the status.
const mostLines = 10

// Grace periods: a restart of an API server, and a new node's first seconds.
const (
	awayGrace = 5 * time.Second
	nodeGrace = 15 * time.Second
)

// trouble is what is wrong with an object.
type trouble struct {
	kind, message string
	// partly says that the rest of the object is applied.
	partly bool
}

// unready is why a node cannot be registered, and what to do.
type unready struct{ why, next string }

func unreadyFor(err error) unready {
	var answer *api.Error
	if errors.As(err, &answer) {
		return unready{answer.Error(), answer.Hint}
	}
	return unready{why: err.Error()}
}

// failed notes why a resource cannot be listed or watched. Watches that end are usual.
func (s *Source) failed(m *mirror, err error) {
	switch {
	case err == nil:
		s.note(func() { m.err = nil })
		return
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return
	case m.custom && apierrors.IsNotFound(err):
		s.note(func() { m.absent, m.err = true, err })
		signal(s.work)
		return
	}
	s.note(func() { m.err, s.looked = err, true })
}

// Changed implements problems.Source.
func (s *Source) Changed() <-chan struct{} { return s.news }

// Problems implements problems.Source.
func (s *Source) Problems() (problems.Rows, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	concerns := s.concerns()
	looked := s.looked || !s.away.IsZero()
	if len(concerns) == 0 {
		return problems.Rows{}, looked
	}
	return problems.Rows{wire.SourceProblemsKey(api.OwnerKubernetes): wire.Marshal(concerns)}, looked
}

// concerns are what an operator has to know. The mutex is held.
func (s *Source) concerns() (out []api.Concern) {
	add := func(reason, message, next string) *api.Concern {
		out = append(out, api.Concern{Object: "Kubernetes", Reason: reason, Message: message, Next: next})
		return &out[len(out)-1]
	}
	if s.kept > 0 {
		add("KubernetesKept", api.Count(s.kept, "object")+" came from Kubernetes, which this API server does not follow: they are kept as they are",
			"start every API server with --kubernetes, or take them over with `weft apply --take-over`")
	}
	if s.access != nil {
		add("KubernetesAccess", "Kubernetes cannot be read: "+s.access.Error(), "correct --kubeconfig and --kube-context, or the pod's service account; it is tried again")
		return out
	}
	if !s.away.IsZero() {
		c := add("KubernetesUnreachable", fmt.Sprintf("Kubernetes API server %s not reachable for {age}: %s; what was read before stays in force", s.host, cause(s.awayWhy)),
			"is it running, and its port open from here? Changes in Kubernetes arrive once it answers")
		c.Since, c.Grace = s.away, awayGrace
	} else {
		out = append(out, s.unread()...)
	}
	if s.foreign != "" {
		add("KubernetesOther", s.foreign, "correct --kubeconfig; if the cluster was rebuilt on purpose, start the API servers with --kubernetes-uid to follow the new one")
	}
	if s.failing != nil {
		add("KubernetesNotApplied", "changes in Kubernetes are not applied: "+s.failing.Error(), "they are tried again; look at the API server's log")
	}
	out = append(out, s.short()...)
	out = append(out, s.nodeConcerns()...)
	out = append(out, s.untoldConcerns()...)
	return append(out, s.objectConcerns()...)
}

// unread are resources that cannot be listed or watched.
func (s *Source) unread() (out []api.Concern) {
	for _, r := range resources {
		m := s.mirrors[r.plural]
		if m.err == nil {
			continue
		}
		c := api.Concern{
			Object: "Kubernetes", Reason: "KubernetesUnread", Part: r.plural, Grace: awayGrace,
			Message: fmt.Sprintf("%s of Kubernetes cannot be read: %s", r.plural, cause(m.err)), Next: "what was read before stays in force; it is tried again",
		}
		switch {
		case apierrors.IsForbidden(m.err), apierrors.IsUnauthorized(m.err):
			c.Next = "give its account the role that the chart has for it (deploy/chart/templates/rbac.yaml)"
		case m.absent:
			c.Message = fmt.Sprintf("%s is installed in Kubernetes, but not in version %s: its objects are not applied", r.definition(), r.group)
			if c.Next = "install the definition of Cilium 1.18 or newer"; r.group == mcsGroup {
				c.Next = "install the definition of mcs-api v0.5 or newer"
			}
		}
		if !m.listed && !m.absent && !s.begun {
			c.Message += "; nothing is applied before"
		}
		out = append(out, c)
	}
	return out
}

// short are lists that lack too much to be believed at once.
func (s *Source) short() (out []api.Concern) {
	for _, r := range resources {
		m := s.mirrors[r.plural]
		if m.need != thrice || !m.back && len(m.doubts) == 0 {
			continue
		}
		c := api.Concern{Object: "Kubernetes", Reason: "KubernetesListShort", Part: r.plural, Since: m.since, Next: "wait if they were deleted; otherwise look at the API servers of Kubernetes and their etcd"}
		c.Message = fmt.Sprintf("Kubernetes no longer lists %d of %d %s: they are kept until %d more lists lack them too", len(m.doubts), len(m.rows), r.plural, max(1, m.need-m.agreed))
		if m.back {
			c.Message = fmt.Sprintf("Kubernetes lists %s as they were before: what was read since is kept until %d more lists say the same", r.plural, max(1, m.need-m.agreed))
		}
		out = append(out, c)
	}
	return out
}

func (s *Source) nodeConcerns() (out []api.Concern) {
	for _, node := range slices.Sorted(maps.Keys(s.unready)) {
		u := s.unready[node]
		out = append(out, api.Concern{
			Object: "node " + node, Node: node, Reason: "NodeNotRegistered", Grace: nodeGrace,
			Message: fmt.Sprintf("node %s of Kubernetes is not registered: %s", node, u.why), Next: cmp.Or(u.next, "correct its Node in Kubernetes; it is tried again"),
		})
	}
	for _, node := range slices.Sorted(maps.Keys(s.homeless)) {
		if _, said := s.unready[node]; said {
			continue
		}
		out = append(out, api.Concern{
			Object: "node " + node, Node: node, Reason: "NodeNotRegistered", Grace: nodeGrace,
			Message: fmt.Sprintf("%s on node %s without a network: the node is not registered", api.Count(len(s.homeless[node]), "pod"), node),
			Next:    "is there a Node of that name in Kubernetes, with an InternalIP and a podCIDR?",
		})
	}
	return shorten(out, "NodeNotRegistered", "nodes that are not registered")
}

func (s *Source) objectConcerns() (out []api.Concern) {
	refs := slices.SortedFunc(maps.Keys(s.wrong), func(a, b registry.Ref) int {
		return cmp.Or(cmp.Compare(a.Plural, b.Plural), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, ref := range refs {
		t := s.wrong[ref]
		c := api.Concern{
			Object: strings.ToLower(t.kind) + " " + ref.String(), Reason: "KubernetesRefused",
			Message: fmt.Sprintf("%s %s of Kubernetes is not applied: %s", t.kind, ref, t.message), Next: "correct it in Kubernetes; until then what was applied of it before, if anything, stays",
		}
		if t.partly {
			c.Reason, c.Message, c.Next = "KubernetesPartly", fmt.Sprintf("%s %s of Kubernetes is applied in part: %s", t.kind, ref, t.message), "correct it in Kubernetes"
		}
		out = append(out, c)
	}
	out = shorten(out, "KubernetesRefused", "objects of Kubernetes that are not applied as they are")
	return out
}

// shorten keeps the first lines and counts the others.
func shorten(all []api.Concern, reason, rest string) []api.Concern {
	if len(all) <= mostLines {
		return all
	}
	more := api.Concern{Object: "Kubernetes", Reason: reason, Message: fmt.Sprintf("%d more %s", len(all)-mostLines, rest), Next: "correct those that are listed"}
	return append(all[:mostLines:mostLines], more)
}
