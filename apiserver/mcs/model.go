package mcs

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// model is what services of the cluster set follow from. It is pure: news in, names to
// derive again out.
type model struct {
	cluster    wire.Cluster
	kubernetes bool

	ownRead, peersRead bool
	exports            map[Name]*mcs.ServiceExport
	status             map[Name]*mcs.ServiceExportStatus
	imports            map[Name]*mcs.ServiceImport
	services           map[Name]*state.Service
	slices             map[Name]map[string]*discoveryv1.EndpointSlice // by service
	sliceOf            map[Name]Name
	offers             map[Name]map[string]*wire.ServiceExport // of peers, by cluster
	kept               map[string]bool                         // namespaces that export nothing
	namespaces         map[string]bool
	derivedOf          map[Name]Name // derived service to the one it is for

	dirty, failed map[Name]bool
	outside, said map[Name]string // what Kubernetes was told
}

func newModel(c wire.Cluster, kubernetes bool) *model {
	m := &model{cluster: c, kubernetes: kubernetes, dirty: map[Name]bool{}, failed: map[Name]bool{}, outside: map[Name]string{}, said: map[Name]string{}}
	m.forgetOwn()
	m.offers = map[Name]map[string]*wire.ServiceExport{}
	return m
}

func (m *model) forgetOwn() {
	m.exports, m.status, m.imports = map[Name]*mcs.ServiceExport{}, map[Name]*mcs.ServiceExportStatus{}, map[Name]*mcs.ServiceImport{}
	m.services, m.slices, m.sliceOf = map[Name]*state.Service{}, map[Name]map[string]*discoveryv1.EndpointSlice{}, map[Name]Name{}
	m.kept, m.namespaces, m.derivedOf = map[string]bool{}, map[string]bool{}, map[Name]Name{}
}

// complete reports whether both sources have told everything once: before that, nothing is
// deleted because it is missing.
func (m *model) complete() bool { return m.ownRead && m.peersRead }

func (m *model) apply(n news) {
	if b := n.own; b != nil {
		if b.Complete {
			m.touchAll()
			m.forgetOwn()
			m.ownRead = true
		}
		for _, e := range b.Events {
			m.event(e)
		}
	}
	if b := n.peers; b != nil {
		if b.Complete {
			m.touchAll()
			m.offers = map[Name]map[string]*wire.ServiceExport{}
			m.peersRead = true
		}
		for _, e := range b.Events {
			m.offer(e)
		}
	}
}

// touchAll has everything derived again.
func (m *model) touchAll() {
	for n := range m.exports {
		m.dirty[n] = true
	}
	for n := range m.imports {
		m.dirty[n] = true
	}
	for n := range m.offers {
		m.dirty[n] = true
	}
	for _, n := range m.derivedOf {
		m.dirty[n] = true
	}
}

// offer takes in what a peer exports.
func (m *model) offer(e store.Event) {
	ref, ok := wire.ParseCiliumCacheKey(e.Key)
	if !ok {
		return
	}
	n := Name{ref.Namespace, ref.Name}
	m.dirty[n] = true
	if delete(m.offers[n], ref.Cluster); len(m.offers[n]) == 0 {
		delete(m.offers, n)
	}
	if e.Deleted {
		return
	}
	v, err := wire.ParseServiceExport(ref, e.Value)
	if err != nil {
		return // the mirror has refused such values
	}
	if m.offers[n] == nil {
		m.offers[n] = map[string]*wire.ServiceExport{}
	}
	m.offers[n][ref.Cluster] = v
}

func set[T any](in map[Name]*T, n Name, e state.Event) *T {
	v, _ := e.Object.(*T)
	if in[n] = v; v == nil {
		delete(in, n)
	}
	return v
}

// touch has what concerns a service derived again, if it is of the cluster set.
func (m *model) touch(n Name) {
	if m.exports[n] != nil || m.imports[n] != nil || len(m.offers[n]) > 0 {
		m.dirty[n] = true
	}
}

// event takes in a change of the cluster's own state.
func (m *model) event(e state.Event) {
	if ns, name, ok := wire.ParseExportStatusKey(e.Key); ok {
		set(m.status, Name{ns, name}, e)
		m.dirty[Name{ns, name}] = true
		return
	}
	plural, ns, name, ok := wire.ParseObjectKey(e.Key)
	if !ok {
		return
	}
	n := Name{ns, name}
	switch plural {
	case manifest.Namespaces:
		v, _ := e.Object.(*corev1.Namespace)
		m.namespaces[name] = v != nil
		m.kept[name] = v != nil && strings.EqualFold(v.Annotations[service.AnnotationNamespaceGlobal], "false")
		for _, of := range []map[Name]bool{keysOf(m.exports), keysOf(m.imports), keysOf(m.offers)} {
			for n := range of {
				if n.Namespace == name {
					m.dirty[n] = true
				}
			}
		}
	case manifest.ServiceExports:
		set(m.exports, n, e)
		m.dirty[n] = true
	case manifest.ServiceImports:
		set(m.imports, n, e)
		m.dirty[n] = true
	case manifest.Services:
		if of, was := m.derivedOf[n]; was {
			m.dirty[of] = true
			delete(m.derivedOf, n)
		}
		svc := set(m.services, n, e)
		if svc != nil {
			if of := svc.Object.Labels[mcs.LabelServiceName]; of != "" && name == wire.DerivedName(ns, of) {
				m.derivedOf[n] = Name{ns, of}
				m.dirty[Name{ns, of}] = true
			}
		}
		m.touch(n)
	case manifest.EndpointSlices:
		if of, was := m.sliceOf[n]; was {
			if delete(m.slices[of], name); len(m.slices[of]) == 0 {
				delete(m.slices, of)
			}
			delete(m.sliceOf, n)
			m.touchSlices(of)
		}
		if v, _ := e.Object.(*discoveryv1.EndpointSlice); v != nil {
			of := Name{ns, v.Labels[discoveryv1.LabelServiceName]}
			if m.slices[of] == nil {
				m.slices[of] = map[string]*discoveryv1.EndpointSlice{}
			}
			m.slices[of][name], m.sliceOf[n] = v, of
			m.touchSlices(of)
		}
	}
}

// touchSlices has the slices of a service looked at, or those of the service that a derived
// one is for.
func (m *model) touchSlices(of Name) {
	if for_, derived := m.derivedOf[of]; derived {
		m.dirty[for_] = true
	}
	m.touch(of)
}

func keysOf[V any](in map[Name]V) map[Name]bool {
	out := make(map[Name]bool, len(in))
	for n := range in {
		out[n] = true
	}
	return out
}
