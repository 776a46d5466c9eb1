package wire

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

// ServiceExport is a service that a cluster offers to the whole cluster set, as the
// Multi-Cluster Services API means it. Field names and order are Cilium's.
type ServiceExport struct {
	Cluster     string            `json:"cluster"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	// Created is when the ServiceExport was created: of several clusters, the oldest counts.
	Created               metav1.Time                          `json:"exportCreationTimestamp"`
	Ports                 []mcs.ServicePort                    `json:"ports"`
	Type                  mcs.ServiceImportType                `json:"type"`
	SessionAffinity       corev1.ServiceAffinity               `json:"sessionAffinity"`
	SessionAffinityConfig *corev1.SessionAffinityConfig        `json:"sessionAffinityConfig,omitempty"`
	IPFamilies            []corev1.IPFamily                    `json:"ipFamilies,omitempty"`
	InternalTrafficPolicy *corev1.ServiceInternalTrafficPolicy `json:"internalTrafficPolicy,omitempty"`
	TrafficDistribution   *string                              `json:"trafficDistribution,omitempty"`
}

// ServiceExportStateKey holds a ServiceExport.
func ServiceExportStateKey(cluster, ns, name string) string {
	return ServiceExports.StatePrefix(cluster) + ns + "/" + name
}

// most is what one export may have, so that a peer cannot fill our objects.
const (
	mostExportPorts  = 256
	mostExportLabels = 64 << 10 // bytes of labels and annotations
	longestSession   = 86400    // seconds, as in Kubernetes
)

// ParseServiceExport reads the export at ref and refuses what Cilium's readers refuse.
func ParseServiceExport(ref CacheRef, b []byte) (*ServiceExport, error) {
	e, err := Unmarshal[ServiceExport](b)
	if err != nil {
		return nil, err
	}
	errs := []error{
		same("cluster", e.Cluster, ref.Cluster),
		same("name", e.Namespace+"/"+e.Name, ref.Namespace+"/"+ref.Name),
	}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if e.Created.IsZero() {
		bad("exportCreationTimestamp is missing")
	}
	if e.Type != mcs.ClusterSetIP && e.Type != mcs.Headless {
		bad("type %q is neither ClusterSetIP nor Headless", e.Type)
	}
	if e.SessionAffinity == "" {
		e.SessionAffinity = corev1.ServiceAffinityNone
	}
	if a := e.SessionAffinity; a != corev1.ServiceAffinityNone && a != corev1.ServiceAffinityClientIP {
		bad("sessionAffinity %q is neither None nor ClientIP", a)
	}
	if c := e.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if t := *c.ClientIP.TimeoutSeconds; t < 1 || t > longestSession {
			bad("sessionAffinityConfig.clientIP.timeoutSeconds %d is not from 1 to %d", t, longestSession)
		}
	}
	if p := e.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster && *p != corev1.ServiceInternalTrafficPolicyLocal {
		bad("internalTrafficPolicy %q is neither Cluster nor Local", *p)
	}
	if d := e.TrafficDistribution; d != nil {
		switch *d {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
		default:
			bad("trafficDistribution %q is not known", *d)
		}
	}
	if len(e.Ports) > mostExportPorts {
		bad("%d ports; at most %d are taken", len(e.Ports), mostExportPorts)
	}
	for _, p := range e.Ports {
		errs = append(errs, knownProtocol(string(p.Protocol)))
		if p.Port < 1 || p.Port > 65535 {
			bad("port %d is out of range", p.Port)
		}
	}
	for _, f := range e.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			bad("IP family %q is neither IPv4 nor IPv6", f)
		}
	}
	size := 0
	for _, m := range []map[string]string{e.Labels, e.Annotations} {
		for k, v := range m {
			size += len(k) + len(v)
		}
	}
	if size > mostExportLabels {
		bad("labels and annotations have %d bytes; at most %d are taken", size, mostExportLabels)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &e, nil
}

// DerivedName is the name of the service that has the address and the backends of a service
// of the cluster set: the one that Cilium uses, because under it clusters tell each other
// the backends.
func DerivedName(ns, name string) string {
	sum := sha256.Sum256([]byte(ns + "/" + name))
	return "derived-" + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))[:10]
}

// ExportStatusPrefix holds the status of each ServiceExport, in Kubernetes JSON.
const ExportStatusPrefix = "weft/state/exportstatus/"

// ExportStatusKey holds the status of a ServiceExport.
func ExportStatusKey(ns, name string) string { return ExportStatusPrefix + ns + "/" + name }

// ParseExportStatusKey is the inverse of ExportStatusKey.
func ParseExportStatusKey(key string) (ns, name string, ok bool) {
	p, ok := parts(key, ExportStatusPrefix, 2)
	if !ok {
		return "", "", false
	}
	return p[0], p[1], true
}
