package export

import (
	corev1 "k8s.io/api/core/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// ofServiceExport exports that a service is offered to the cluster set. Its backends are
// those of the service that is derived for it (package mcs).
func (v *views) ofServiceExport(ns, name string) map[string][]byte {
	export, svc := v.offered[[2]string{ns, name}], v.services[[2]string{ns, name}]
	if export == nil || v.kept[ns] || !Offers(svc) {
		return nil
	}
	return map[string][]byte{wire.ServiceExportStateKey(v.cluster.Name, ns, name): wire.Marshal(Offer(v.cluster.Name, export, svc))}
}

// Offers reports whether there is a service that can be offered to the cluster set.
func Offers(svc *state.Service) bool {
	return svc != nil && svc.Wrong == nil && svc.Object.Spec.Type != corev1.ServiceTypeExternalName
}

// Offer is what a cluster tells others of a service that it offers.
func Offer(cluster string, export *mcs.ServiceExport, svc *state.Service) wire.ServiceExport {
	spec := &svc.Object.Spec
	e := wire.ServiceExport{
		Cluster: cluster, Namespace: svc.Namespace, Name: svc.Name,
		Annotations: export.Spec.ExportedAnnotations, Labels: export.Spec.ExportedLabels, Created: export.CreationTimestamp,
		Ports: []mcs.ServicePort{}, Type: mcs.ClusterSetIP, SessionAffinity: spec.SessionAffinity,
		SessionAffinityConfig: spec.SessionAffinityConfig, IPFamilies: service.Families(svc.Object),
		InternalTrafficPolicy: spec.InternalTrafficPolicy, TrafficDistribution: spec.TrafficDistribution,
	}
	if e.SessionAffinity == "" {
		e.SessionAffinity = corev1.ServiceAffinityNone
	}
	if len(svc.Addresses) == 0 {
		e.Type = mcs.Headless
	}
	for _, p := range spec.Ports {
		port := mcs.ServicePort{Name: p.Name, Protocol: p.Protocol, AppProtocol: p.AppProtocol, Port: p.Port}
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		e.Ports = append(e.Ports, port)
	}
	return e
}
