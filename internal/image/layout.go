package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// spdx is the media type of a bill of materials.
const spdx = "application/spdx+json"

// nothing is the configuration of what is not an image, by the OCI's image format 1.1.
const nothing types.MediaType = "application/vnd.oci.empty.v1+json"

// write writes images and their bills of materials into a new folder in the OCI's layout. Its
// index names one entry, under which runtimes find the image of their platform, and the bills,
// which refer to the images they are about.
func write(dir string, programs []program, o options) error {
	images := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var bills []v1.Image
	for _, p := range programs {
		img, err := imageOf(p, o)
		if err != nil {
			return err
		}
		images = mutate.AppendManifests(images, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.os, Architecture: p.arch}},
		})
		bill, err := billOf(p, img, o)
		if err != nil {
			return err
		}
		bills = append(bills, bill)
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := path.AppendIndex(images, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": o.reference,
		"io.containerd.image.name":          o.reference,
	})); err != nil {
		return err
	}
	for _, b := range bills {
		if err := path.AppendImage(b); err != nil {
			return err
		}
	}
	return nil
}

// imageOf is the image with a program.
func imageOf(p program, o options) (v1.Image, error) {
	layer, err := layerOf(p, o)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
		Created: v1.Time{Time: o.created}, CreatedBy: "weft's internal/image", Comment: "the program, and nothing else",
	}})
	if err != nil {
		return nil, err
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture, conf.Created = p.os, p.arch, v1.Time{Time: o.created}
	conf.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/weft"},
		Env:        []string{"PATH=/usr/bin"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "weft",
			"org.opencontainers.image.description": "Joins clusters into one mesh",
			"org.opencontainers.image.version":     o.version,
			"org.opencontainers.image.source":      "https://github.com/weft-mesh/weft",
		},
	}
	return mutate.ConfigFile(img, conf)
}

// layerOf is the only layer of an image: the program, and the folders that it needs.
func layerOf(p program, o options) (v1.Layer, error) {
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	var err error
	for _, dir := range []string{"usr/", "usr/bin/"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: o.created}))
	}
	// Backups are written there first.
	err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: o.created}))
	err = errors.Join(err, addFile(w, p.path, tar.Header{Name: "usr/bin/weft", Mode: 0o755, ModTime: o.created}), w.Close())
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(text.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

// billOf is the bill of materials of an image, as something that refers to it.
func billOf(p program, img v1.Image, o options) (v1.Image, error) {
	text, err := billOfMaterials(p, o)
	if err != nil {
		return nil, err
	}
	about, err := partial.Descriptor(img)
	if err != nil {
		return nil, err
	}
	bill := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), nothing)
	bill, err = mutate.Append(bill, mutate.Addendum{Layer: static.NewLayer(text, spdx), Annotations: map[string]string{
		"org.opencontainers.image.title": "weft-" + p.arch + ".spdx.json",
	}})
	if err != nil {
		return nil, err
	}
	withType, ok := mutate.Annotations(bill, map[string]string{"org.opencontainers.image.created": o.created.Format("2006-01-02T15:04:05Z")}).(v1.Image)
	if !ok {
		return nil, errors.New("a bill of materials is not an image")
	}
	out, ok := mutate.Subject(withType, *about).(v1.Image)
	if !ok {
		return nil, errors.New("a bill of materials cannot refer to its image")
	}
	return out, nil
}
