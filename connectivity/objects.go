package connectivity

import (
	_ "embed"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Ports of the pods. A host port must not be one of the range of node ports.
const (
	mainPort, adminPort = 8080, 8081
	processPort         = 8478
	hostPort            = 8479
)

//go:embed services.yaml
var services string

// external is a service that some clusters refuse. Nobody has its address, which is for
// documentation.
const external = `{apiVersion: v1, kind: Service, metadata: {name: external},
  spec: {externalIPs: [198.51.100.77], selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}}`

// pods are those of a cluster.
type pods struct {
	cluster, image string
	near, far      string // nodes
}

func namespaces() (out []*corev1.Namespace) {
	for _, name := range []string{Namespace, Other} {
		out = append(out, &corev1.Namespace{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			// Pods on the host's network are privileged.
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{label: "true", "pod-security.kubernetes.io/enforce": "privileged"}},
		})
	}
	return out
}

// objects are the pods, on both nodes if there are two.
func (p pods) objects() (out []*corev1.Pod) {
	add := func(name, app, place string, host bool) {
		node := p.near
		if place == "far" {
			node = p.far
		}
		if node != "" {
			out = append(out, p.pod(name, app, place, node, host))
		}
	}
	add("client", "client", "near", false)
	add("stranger", "stranger", "near", false)
	add("guest", "client", "near", false)
	add("server-near", "server", "near", false)
	add("server-far", "server", "far", false)
	add("host-near", "process", "near", true)
	add("host-far", "process", "far", true)
	return out
}

func (p pods) pod(name, app, place, node string, host bool) *corev1.Pod {
	spec := p.spec(namespaceOf(name), host)
	spec.NodeName = node
	if name == "server-near" {
		spec.Containers[0].Ports[0].HostPort = hostPort
	}
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespaceOf(name), Labels: map[string]string{"app": app, "place": place}},
		Spec:       spec,
	}
}

func (p pods) spec(namespace string, host bool) corev1.PodSpec {
	never, second := false, int64(1)
	c := corev1.Container{
		Name: "probe", Image: p.image,
		// The agents' image is on each node already, and nothing has to be pulled.
		ImagePullPolicy: corev1.PullIfNotPresent,
		Env:             []corev1.EnvVar{{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
		Args:            []string{"connectivity", "serve", "--self", p.cluster + "/" + namespace + "/$(POD)"},
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(processPort)},
		}},
	}
	if host {
		c.Args = append(c.Args, "--tcp", fmt.Sprintf(":%d", processPort), "--udp", fmt.Sprintf(":%d", processPort))
	} else {
		c.Args = append(c.Args, "--tcp", fmt.Sprintf(":%d,:%d", mainPort, adminPort), "--udp", fmt.Sprintf(":%d", mainPort))
		c.ReadinessProbe.TCPSocket.Port = intstr.FromInt32(mainPort)
		c.Ports = []corev1.ContainerPort{
			{Name: "main", ContainerPort: mainPort, Protocol: corev1.ProtocolTCP},
			{Name: "admin", ContainerPort: adminPort, Protocol: corev1.ProtocolTCP},
			{Name: "packets", ContainerPort: mainPort, Protocol: corev1.ProtocolUDP},
		}
	}
	return corev1.PodSpec{
		HostNetwork: host, Containers: []corev1.Container{c},
		TerminationGracePeriodSeconds: &second, AutomountServiceAccountToken: &never, EnableServiceLinks: &never,
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
	}
}

// global has the backend of the global service, of which each cluster has one.
func (p pods) global() *appsv1.StatefulSet {
	one, labels := int32(1), map[string]string{"app": "global"}
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metav1.ObjectMeta{Name: "global", Namespace: Namespace},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &one, ServiceName: "global", Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: p.spec(Namespace, false)},
		},
	}
}
