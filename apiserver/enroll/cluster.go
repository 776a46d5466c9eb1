package enroll

import (
	"context"
	"net/http"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/api"
)

// Cluster is the Kubernetes cluster whose nodes may join: the one that objects come from, and
// no other that a kubeconfig may lead to. Safe for concurrent use.
type Cluster struct {
	// Connect makes a client. It is called until it succeeds, and again after its client
	// has turned out to be another cluster's.
	Connect func() (kubernetes.Interface, error)
	// Followed returns the UID of the namespace kube-system in the cluster that objects come
	// from, which stands for the cluster; "" if none has been read yet.
	Followed func(context.Context) (string, error)

	mu     sync.Mutex           // guards client
	client kubernetes.Interface // nil: there is none yet
}

// Client returns a client of the cluster.
func (c *Cluster) Client(ctx context.Context) (kubernetes.Interface, error) {
	followed, err := c.Followed(ctx)
	if err != nil {
		return nil, err
	}
	if followed == "" {
		return nil, api.Refuse(http.StatusServiceUnavailable, "try again once it has", "the mesh API server has not read Kubernetes yet")
	}
	client, err := c.connect()
	if err != nil {
		return nil, err
	}
	return client, c.check(ctx, client, followed)
}

// connect returns the client, whichever cluster's.
func (c *Cluster) connect() (kubernetes.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, nil
	}
	client, err := c.Connect()
	if err != nil {
		return nil, api.Refuse(http.StatusServiceUnavailable, "correct --kubeconfig and --kube-context, or the pod's service account; it is tried again", "Kubernetes cannot be read: %v", err)
	}
	c.client = client
	return client, nil
}

// check returns an error unless the client is the cluster's.
func (c *Cluster) check(ctx context.Context, client kubernetes.Interface, followed string) error {
	system, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return away("read namespace "+metav1.NamespaceSystem, err)
	}
	if string(system.UID) == followed {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == client {
		c.client = nil
	}
	return api.Conflict("correct --kubeconfig; if the cluster was rebuilt on purpose, start the API servers with --kubernetes-uid to follow the new one",
		"this is another Kubernetes cluster than the one that is followed: its namespace %s has the UID %s, not %s", metav1.NamespaceSystem, system.UID, followed)
}
