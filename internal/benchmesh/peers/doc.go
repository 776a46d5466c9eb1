// Package peers generates the other clusters of a mesh: what each exports, under the
// keys and in the values of package wire, how it changes, and an etcd that serves it.
//
// Nothing runs in these clusters. How the cluster that reads them copes is measured by
// the program that uses this package.
package peers
