package kubernetes

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/apiserver/declared"
	"github.com/weft-mesh/weft/apiserver/registry"
)

// peerObject is what counts of a Peer.
type peerObject struct {
	Spec struct {
		Servers   []string `json:"servers"`
		SecretRef struct {
			Name string `json:"name"`
		} `json:"secretRef"`
	} `json:"spec"`
}

// tellPeers says which Peer objects there are, if one of them is among what has changed. One of
// which nothing was read yet was there in an earlier term, and is kept as it was.
func (w *writer) tellPeers(refs []registry.Ref) {
	if w.conf.Peers == nil || w.told && !slices.ContainsFunc(refs, func(r registry.Ref) bool { return r.Plural == peers }) {
		return
	}
	var all []declared.Object
	w.mu.Lock()
	for n, r := range w.mirrors[peers].rows {
		var o peerObject
		if r.text != nil && json.Unmarshal(r.text, &o) != nil {
			continue // its definition lets none through
		}
		all = append(all, declared.Object{Name: n.name, UID: r.uid, Servers: o.Spec.Servers, Secret: o.Spec.SecretRef.Name})
	}
	w.mu.Unlock()
	slices.SortFunc(all, func(a, b declared.Object) int { return strings.Compare(a.Name, b.Name) })
	w.conf.Peers.Want(all)
	w.told = true
}

// Trusted says whether the objects of Kubernetes are those of the cluster that is followed, and
// were read.
func (s *Source) Trusted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun && s.foreign == ""
}
