package mcs

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/export"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

const (
	// ManagedBy marks the endpoint slices that are made here.
	ManagedBy = "weft-mcs"
	// annotationDerived on a ServiceImport names the service that has its address.
	annotationDerived = "multicluster.kubernetes.io/derived-service"
)

// wanted is what follows for one name, as far as it differs from what there is.
type wanted struct {
	puts    []registry.Unit
	deletes []registry.Ref
	status  []store.Op
	// For Kubernetes: the service to write, or that it has to go; all of the import, and of
	// the status of the export, nil if there is none.
	service     *corev1.Service
	dropService bool
	imported    *mcs.ServiceImport
	exported    *mcs.ServiceExportStatus
	// problem is why it is not there as it should be.
	problem string
}

func (w *wanted) put(plural string, n Name, object any) {
	text, err := json.Marshal(object)
	if err != nil {
		panic(fmt.Sprintf("a derived object does not encode: %v", err)) // its parts were read from JSON
	}
	w.puts = append(w.puts, registry.Unit{Name: plural + " " + n.String(), Manifest: text})
}

// concerns are for the operator.
func (w *wanted) concerns(n Name) (all []api.Concern) {
	if w.problem != "" {
		all = append(all, api.Concern{
			Object: "serviceimport " + n.String(), Reason: "ImportNotReady",
			Message: fmt.Sprintf("service %s of the cluster set is not there as it should be: %s", n, w.problem), Next: "it is tried again",
		})
	}
	if w.exported == nil {
		return all
	}
	for _, c := range w.exported.Conditions {
		object := "serviceexport " + n.String()
		switch {
		case c.Type == string(mcs.ServiceExportConditionValid) && c.Status == metav1.ConditionFalse:
			all = append(all, api.Concern{Object: object, Reason: "ExportNotValid", Part: c.Reason, Message: fmt.Sprintf("%s is not exported: %s", object, c.Message), Next: "correct it, or delete the export"})
		case c.Type == string(mcs.ServiceExportConditionConflict) && c.Status == metav1.ConditionTrue:
			all = append(all, api.Concern{Object: object, Reason: "ExportConflict", Part: c.Reason, Message: fmt.Sprintf("%s conflicts with those of other clusters: %s", object, c.Message), Next: "make the services alike"})
		}
	}
	return all
}

// derive says what follows for a name.
func (m *model) derive(n Name) wanted {
	var w wanted
	own := m.exports[n]
	invalid, why := m.invalid(n)
	var offers []*wire.ServiceExport
	for _, cluster := range slices.Sorted(maps.Keys(m.offers[n])) {
		offers = append(offers, m.offers[n][cluster])
	}
	if own != nil && invalid == "" {
		o := export.Offer(m.cluster.Name, own, m.services[n])
		offers = append(offers, &o)
	}
	var all *merged
	if len(offers) > 0 {
		a := merge(offers)
		all = &a
	}
	if m.kubernetes && !m.namespaces[n.Namespace] {
		all = nil // there is no place for it
	}
	m.exportStatus(&w, n, all, invalid, why)
	families, ok := m.families(all)
	switch {
	case all == nil:
	case !ok:
		w.problem = fmt.Sprintf("it has %v, and this cluster has no service CIDR of that", all.IPFamilies)
	}
	m.service(&w, n, all, families, own != nil && invalid == "")
	m.mirrored(&w, n, all, own != nil && invalid == "" && ok)
	m.importOf(&w, n, all, families, ok)
	return w
}

// invalid says why an export is not valid.
func (m *model) invalid(n Name) (reason mcs.ServiceExportConditionReason, why string) {
	svc := m.services[n]
	switch {
	case m.exports[n] == nil:
		return mcs.ServiceExportReasonNoService, ""
	case m.kept[n.Namespace]:
		return "NamespaceNotGlobal", fmt.Sprintf("annotation %s keeps namespace %s from being exported", service.AnnotationNamespaceGlobal, n.Namespace)
	case svc == nil:
		return mcs.ServiceExportReasonNoService, fmt.Sprintf("there is no service %s yet", n)
	case !export.Offers(svc):
		return mcs.ServiceExportReasonInvalidServiceType, fmt.Sprintf("service %s is of type %s, which cannot be exported", n, svc.Object.Spec.Type)
	}
	return "", ""
}

// families are those that the service has here; false if there are none.
func (m *model) families(all *merged) (out []corev1.IPFamily, ok bool) {
	if all == nil {
		return nil, false
	}
	var have []corev1.IPFamily
	for _, p := range m.cluster.ServiceCIDRs() {
		have = append(have, service.FamilyOf(p.Addr()))
	}
	if all.IPFamilies == nil {
		return have, len(have) > 0
	}
	for _, f := range all.IPFamilies {
		if slices.Contains(have, f) || all.Type == mcs.Headless && len(have) == 0 {
			out = append(out, f)
		}
	}
	return out, len(out) > 0
}

// exportStatus derives the status of the own export.
func (m *model) exportStatus(w *wanted, n Name, all *merged, invalid mcs.ServiceExportConditionReason, why string) {
	key, was := wire.ExportStatusKey(n.Namespace, n.Name), m.status[n]
	if m.exports[n] == nil {
		if was != nil {
			w.status = append(w.status, store.Delete(key))
		}
		return
	}
	s := mcs.ServiceExportStatus{}
	if was != nil {
		s.Conditions = slices.Clone(was.Conditions)
	}
	if invalid != "" {
		s.Conditions = conditions(s.Conditions,
			mcs.NewServiceExportCondition(mcs.ServiceExportConditionValid, metav1.ConditionFalse, invalid, why),
			mcs.NewServiceExportCondition(mcs.ServiceExportConditionReady, metav1.ConditionFalse, mcs.ServiceExportReasonPending, why))
	} else {
		conflict := mcs.NewServiceExportCondition(mcs.ServiceExportConditionConflict, metav1.ConditionFalse, mcs.ServiceExportReasonNoConflicts, "")
		if all != nil && len(all.conflict.reasons) > 0 {
			conflict.Status, conflict.Reason, conflict.Message = metav1.ConditionTrue, strings.Join(all.conflict.reasons, ","), short(strings.Join(all.conflict.messages, "; "))
		}
		s.Conditions = conditions(s.Conditions,
			mcs.NewServiceExportCondition(mcs.ServiceExportConditionValid, metav1.ConditionTrue, mcs.ServiceExportReasonValid, ""),
			mcs.NewServiceExportCondition(mcs.ServiceExportConditionReady, metav1.ConditionTrue, mcs.ServiceExportReasonExported, ""),
			conflict)
	}
	w.exported = &s
	if was == nil || !apiequality.Semantic.DeepEqual(was.Conditions, s.Conditions) {
		w.status = append(w.status, store.Put(key, wire.Marshal(s)))
	}
}

// short cuts a message to what Kubernetes takes.
func short(text string) string {
	const most = 32000
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// conditions returns the new ones with the times at which they began.
func conditions(was []metav1.Condition, now ...metav1.Condition) []metav1.Condition {
	for i := range now {
		now[i].LastTransitionTime = metav1.NewTime(now[i].LastTransitionTime.UTC().Truncate(time.Second))
		for _, old := range was {
			if old.Type == now[i].Type && old.Status == now[i].Status {
				now[i].LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return now
}

// taken are the annotations of exports that have an effect on the service, with the values
// that they may have.
var taken = map[string][]string{
	service.AnnotationAffinity:  {"local", "remote", "none"},
	service.AnnotationAlgorithm: {string(service.Random), string(service.Maglev)},
}

// service derives the service that has the address.
func (m *model) service(w *wanted, n Name, all *merged, families []corev1.IPFamily, exported bool) {
	at := Name{n.Namespace, wire.DerivedName(n.Namespace, n.Name)}
	have := m.services[at]
	ours := m.derivedOf[at] == n
	ref := registry.Ref{Plural: manifest.Services, Namespace: at.Namespace, Name: at.Name}
	drop := func() {
		if w.dropService = true; !m.kubernetes {
			w.deletes = append(w.deletes, ref)
		}
	}
	if all == nil || len(families) == 0 {
		if have != nil && ours {
			drop()
		}
		return
	}
	if have != nil && !ours {
		w.problem = fmt.Sprintf("its derived service would be %s, which is another one's", at)
		return
	}
	want := derivedService(n, all, families, exported)
	switch {
	case have != nil && headless(have.Object) != headless(want):
		drop() // and made again when it is gone
	case have == nil || !sameService(have.Object, want):
		if w.service = want; !m.kubernetes {
			w.put(manifest.Services, at, want)
		}
	}
}

func headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

func derivedService(n Name, all *merged, families []corev1.IPFamily, exported bool) *corev1.Service {
	policy := corev1.IPFamilyPolicySingleStack
	if len(families) > 1 {
		policy = corev1.IPFamilyPolicyPreferDualStack
	}
	svc := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: n.Namespace, Name: wire.DerivedName(n.Namespace, n.Name),
			Labels:      map[string]string{mcs.LabelServiceName: n.Name},
			Annotations: map[string]string{service.AnnotationGlobal: "true", service.AnnotationShared: fmt.Sprint(exported)},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, IPFamilies: families, IPFamilyPolicy: &policy,
			InternalTrafficPolicy: all.InternalTrafficPolicy,
		},
	}
	for name, values := range taken {
		if v := strings.ToLower(all.Annotations[name]); slices.Contains(values, v) {
			svc.Annotations[name] = v
		}
	}
	if d := distribution(&all.ServiceExport); d != "" {
		svc.Spec.TrafficDistribution = &d
	}
	if svc.Spec.InternalTrafficPolicy == nil {
		svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
	}
	if all.Type == mcs.Headless {
		svc.Spec.ClusterIP = corev1.ClusterIPNone
		delete(svc.Annotations, service.AnnotationAlgorithm)
	}
	svc.Spec.SessionAffinity = corev1.ServiceAffinityNone
	if all.SessionAffinity == corev1.ServiceAffinityClientIP {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(seconds(&all.ServiceExport))}}
	}
	for _, p := range all.Ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: p.Name, Protocol: p.Protocol, AppProtocol: p.AppProtocol, Port: p.Port})
	}
	return svc
}

// sameService reports whether a service is as it should be, in what is decided here.
func sameService(have, want *corev1.Service) bool {
	part := func(s *corev1.Service) any {
		spec := corev1.ServiceSpec{
			SessionAffinity: cmp.Or(s.Spec.SessionAffinity, corev1.ServiceAffinityNone), SessionAffinityConfig: s.Spec.SessionAffinityConfig,
			IPFamilies: service.Families(s), TrafficDistribution: s.Spec.TrafficDistribution, InternalTrafficPolicy: s.Spec.InternalTrafficPolicy,
		}
		for _, p := range s.Spec.Ports {
			spec.Ports = append(spec.Ports, corev1.ServicePort{Name: p.Name, Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP), AppProtocol: p.AppProtocol, Port: p.Port})
		}
		annotations := map[string]string{}
		for _, name := range []string{service.AnnotationGlobal, service.AnnotationShared, service.AnnotationAffinity, service.AnnotationAlgorithm} {
			annotations[name] = s.Annotations[name]
		}
		return []any{s.Labels[mcs.LabelServiceName], annotations, spec}
	}
	return apiequality.Semantic.DeepEqual(part(have), part(want))
}

// mirrored derives the slices of the derived service: the backends of the own service, under
// the names that ports have in the cluster set.
func (m *model) mirrored(w *wanted, n Name, all *merged, exported bool) {
	derived := Name{n.Namespace, wire.DerivedName(n.Namespace, n.Name)}
	have, want := m.slices[derived], map[string]*discoveryv1.EndpointSlice{}
	if all != nil && exported {
		for _, from := range m.slices[n] {
			s := m.mirror(n, derived.Name, from, all)
			want[s.Name] = s
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if old := have[name]; old == nil || !sameSlice(old, want[name]) {
			w.put(manifest.EndpointSlices, Name{n.Namespace, name}, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if want[name] == nil && have[name].Labels[discoveryv1.LabelManagedBy] == ManagedBy {
			w.deletes = append(w.deletes, registry.Ref{Plural: manifest.EndpointSlices, Namespace: n.Namespace, Name: name})
		}
	}
}

func (m *model) mirror(n Name, derived string, from *discoveryv1.EndpointSlice, all *merged) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: sliceName(derived, from.Name), Labels: map[string]string{
			discoveryv1.LabelServiceName: derived, discoveryv1.LabelManagedBy: ManagedBy,
			mcs.LabelServiceName: n.Name, mcs.LabelSourceCluster: m.cluster.Name,
		}},
		AddressType: from.AddressType, Endpoints: from.Endpoints,
	}
	if v, ok := from.Annotations[service.AnnotationWeight]; ok {
		s.Annotations = map[string]string{service.AnnotationWeight: v}
	}
	spec := &m.services[n].Object.Spec
	for _, p := range from.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		i := slices.IndexFunc(spec.Ports, func(o corev1.ServicePort) bool { return o.Name == name })
		if i < 0 {
			continue
		}
		of := spec.Ports[i]
		j := slices.IndexFunc(all.Ports, func(o mcs.ServicePort) bool {
			return o.Port == of.Port && o.Protocol == cmp.Or(of.Protocol, corev1.ProtocolTCP)
		})
		if j < 0 {
			continue // its name is another port's: a conflict
		}
		p.Name = &all.Ports[j].Name
		s.Ports = append(s.Ports, p)
	}
	return s
}

// sliceName is a name that is derived from another one, and still valid.
func sliceName(derived, from string) string {
	name := derived + "-" + from
	if len(name) <= 253 {
		return name
	}
	sum := sha256.Sum256([]byte(from))
	return derived + "-" + hex.EncodeToString(sum[:16])
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return a.AddressType == b.AddressType && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		apiequality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) && apiequality.Semantic.DeepEqual(a.Ports, b.Ports)
}

// importOf derives the ServiceImport.
func (m *model) importOf(w *wanted, n Name, all *merged, families []corev1.IPFamily, supported bool) {
	was := m.imports[n]
	if all == nil {
		if was != nil {
			w.deletes = append(w.deletes, registry.Ref{Plural: manifest.ServiceImports, Namespace: n.Namespace, Name: n.Name})
		}
		return
	}
	derived := wire.DerivedName(n.Namespace, n.Name)
	i := &mcs.ServiceImport{
		TypeMeta:   metav1.TypeMeta{APIVersion: mcs.GroupVersion.String(), Kind: "ServiceImport"},
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, Labels: maps.Clone(all.Labels), Annotations: maps.Clone(all.Annotations)},
		Spec: mcs.ServiceImportSpec{
			Ports: all.Ports, Type: all.Type, SessionAffinity: all.SessionAffinity, SessionAffinityConfig: all.SessionAffinityConfig, IPFamilies: families,
			InternalTrafficPolicy: all.InternalTrafficPolicy, TrafficDistribution: all.TrafficDistribution,
		},
	}
	if i.Annotations == nil {
		i.Annotations = map[string]string{}
	}
	i.Annotations[annotationDerived] = derived
	if svc := m.services[Name{n.Namespace, derived}]; svc != nil && headless(svc.Object) == (all.Type == mcs.Headless) {
		for _, a := range svc.Addresses {
			i.Spec.IPs = append(i.Spec.IPs, a.String())
		}
	}
	for _, c := range all.clusters {
		i.Status.Clusters = append(i.Status.Clusters, mcs.ClusterStatus{Cluster: c})
	}
	ready := mcs.NewServiceImportCondition(mcs.ServiceImportConditionReady, metav1.ConditionTrue, mcs.ServiceImportReasonReady, "")
	switch {
	case !supported:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, string(mcs.ServiceImportReasonIPFamilyNotSupported), w.problem
	case w.problem != "", all.Type == mcs.ClusterSetIP && len(i.Spec.IPs) == 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, string(mcs.ServiceImportReasonPending), cmp.Or(w.problem, "its address is being allocated")
	}
	var before []metav1.Condition
	if was != nil {
		before = was.Status.Conditions
	}
	i.Status.Conditions = conditions(before, ready)
	w.imported = i
	if was == nil || !sameImport(was, i) {
		w.put(manifest.ServiceImports, n, i)
	}
}

func sameImport(a, b *mcs.ServiceImport) bool {
	return maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		apiequality.Semantic.DeepEqual(a.Spec, b.Spec) && apiequality.Semantic.DeepEqual(a.Status, b.Status)
}
