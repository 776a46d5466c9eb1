package enroll

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

// CheckBeginning returns an error if Kubernetes knows the mesh of this cluster under another
// certificate authority than ca: the API server was moved to a node that has not its store, and
// would begin an empty one, to which agents would turn. The error is Unknown if Kubernetes does
// not say, or is another than the one that is followed.
func (c *Cluster) CheckBeginning(ctx context.Context, namespace, cluster string, ca []byte) error {
	client, err := c.connect()
	if err != nil {
		return Unknown{err}
	}
	followed, err := c.Followed(ctx)
	if err != nil {
		return err
	}
	if followed != "" {
		if err := c.check(ctx, client, followed); err != nil {
			return Unknown{err}
		}
	}
	secret, err := client.CoreV1().Secrets(namespace).Get(ctx, OperatorSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return Unknown{err}
	}
	return checkSecret(secret, cluster, ca)
}

// checkSecret is CheckBeginning for the Secret as it is.
func checkSecret(secret *corev1.Secret, cluster string, ca []byte) error {
	var file api.Config
	if err := yaml.Unmarshal(secret.Data[ContextKey], &file); err != nil {
		return nil // it is written again
	}
	x, err := file.Context(cluster)
	if err != nil || api.ShareCertificate([]byte(x.CA), ca) {
		return nil
	}
	return fmt.Errorf("this cluster's store is on another node, that of the API server at %s: run it there (apiServer.nodeSelector of the chart), restore a backup here (`weft restore`), or, to begin a new mesh, delete Secret %s/%s", x.Server, secret.Namespace, secret.Name)
}

// Unknown is the error of a Kubernetes that does not say whether the cluster has a store.
type Unknown struct{ error }

func (e Unknown) Unwrap() error { return e.error }
