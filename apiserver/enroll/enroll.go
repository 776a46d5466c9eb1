// Package enroll admits the nodes of a Kubernetes cluster to the mesh: an agent shows the token
// that Kubernetes issued for its pod, and Kubernetes says on which node that pod runs, and what
// the node is.
//
// It decides who may join. What becomes of the node is the register's.
package enroll

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
)

// Config of an Enroller.
type Config struct {
	Cluster *Cluster
	// Namespace and Account are the service account of the agents' pods.
	Namespace, Account string
	IPAM               nodes.IPAM
}

// Enroller decides who may join. Safe for concurrent use.
type Enroller struct{ conf Config }

// New makes an Enroller.
func New(c Config) *Enroller { return &Enroller{c} }

// Extra fields of a token's user: Kubernetes' names for the pod that it was issued to, and
// from 1.30 on for that pod's node.
const (
	podNameKey  = "authentication.kubernetes.io/pod-name"
	podUIDKey   = "authentication.kubernetes.io/pod-uid"
	nodeNameKey = "authentication.kubernetes.io/node-name"
)

// Node returns the node on which the pod runs that a token was issued to, as Kubernetes has
// it. Tokens of anybody but the agents, and those that are not bound to a pod, are refused.
func (e *Enroller) Node(ctx context.Context, token string) (api.NodeRequest, error) {
	if err := e.Plausible(token); err != nil {
		return api.NodeRequest{}, err
	}
	client, err := e.conf.Cluster.Client(ctx)
	if err != nil {
		return api.NodeRequest{}, err
	}
	review, err := client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{api.TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return api.NodeRequest{}, away("ask Kubernetes whose token it is", err)
	}
	user, err := e.agent(review.Status)
	if err != nil {
		return api.NodeRequest{}, err
	}
	name, err := e.nodeOf(ctx, client, user)
	if err != nil {
		return api.NodeRequest{}, err
	}
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return api.NodeRequest{}, api.Refuse(http.StatusForbidden, "wait until its kubelet has registered it", "Kubernetes has no node %q", name)
	}
	if err != nil {
		return api.NodeRequest{}, away("read node "+name, err)
	}
	return nodes.FromKubernetes(node, e.conf.IPAM)
}

// user is who agents are in Kubernetes.
func (e *Enroller) user() string {
	return "system:serviceaccount:" + e.conf.Namespace + ":" + e.conf.Account
}

// agent returns the user of a token that is an agent's.
func (e *Enroller) agent(s authenticationv1.TokenReviewStatus) (authenticationv1.UserInfo, error) {
	want := e.user()
	switch {
	case !s.Authenticated:
		why := "it has expired, its pod is gone, or it is another cluster's"
		if s.Error != "" {
			why = s.Error
		}
		return s.User, api.Refuse(http.StatusUnauthorized, "restart the agent's pod if this goes on", "Kubernetes does not accept the token: %s", why)
	case !slices.Contains(s.Audiences, api.TokenAudience):
		return s.User, api.Refuse(http.StatusForbidden, "give the agent a projected token with the audience "+api.TokenAudience,
			"the token is for %s", strings.Join(s.Audiences, ", "))
	case s.User.Username != want:
		return s.User, api.Refuse(http.StatusForbidden, "agents run as "+want, "the token is that of %s", s.User.Username)
	}
	return s.User, nil
}

// nodeOf returns the node of the pod that a token was issued to.
func (e *Enroller) nodeOf(ctx context.Context, client kubernetes.Interface, user authenticationv1.UserInfo) (string, error) {
	if names := user.Extra[nodeNameKey]; len(names) == 1 && names[0] != "" {
		return names[0], nil
	}
	names, uids := user.Extra[podNameKey], user.Extra[podUIDKey]
	if len(names) != 1 || len(uids) != 1 {
		return "", api.Refuse(http.StatusForbidden, "give the agent a projected token, which is bound to its pod", "the token is not bound to a pod")
	}
	pod, err := client.CoreV1().Pods(e.conf.Namespace).Get(ctx, names[0], metav1.GetOptions{})
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return "", away("read pod "+e.conf.Namespace+"/"+names[0], err)
	case err != nil || string(pod.UID) != uids[0] || pod.Spec.NodeName == "":
		return "", api.Refuse(http.StatusForbidden, "restart the agent's pod if this goes on", "the pod that the token was issued to is gone: %s/%s", e.conf.Namespace, names[0])
	}
	return pod.Spec.NodeName, nil
}

// away is the error of a Kubernetes API server that does not do what it should.
func away(what string, err error) error {
	if apierrors.IsForbidden(err) {
		return api.Refuse(http.StatusServiceUnavailable, "give the mesh API server's service account the role that the chart has for it", "%s: %v", what, err)
	}
	return api.Refuse(http.StatusServiceUnavailable, "try again once the Kubernetes API server answers", "%s: %v", what, err)
}

// ParseAccount reads a service account in the form namespace/name.
func ParseAccount(text string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("%q is not a service account: write NAMESPACE/NAME", text)
	}
	return namespace, name, nil
}
