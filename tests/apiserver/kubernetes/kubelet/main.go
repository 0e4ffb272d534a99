// A node that can do nothing but forward ports: the part of the kubelet behind `kubectl port-forward`, with the kubelet's own
// code for it. The pods of the tests are processes beside it.
//
//	kubelet FILE
//
// It prints the port that it listens on. Each line of FILE says where a port of a pod is: NAMESPACE/POD:PORT ADDRESS. The
// file is read again for each connection.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/cert"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"
)

type forwarder struct{ file string }

// PortForward copies between a stream of the API server and a port of a pod, until one of them ends.
func (f forwarder) PortForward(_ context.Context, pod string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	table, err := os.ReadFile(f.file)
	if err != nil {
		return err
	}
	wanted := fmt.Sprintf("%s:%d ", pod, port)
	for line := range strings.Lines(string(table)) {
		address, found := strings.CutPrefix(strings.TrimSpace(line), wanted)
		if !found {
			continue
		}
		connection, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer connection.Close()
		done := make(chan struct{}, 2)
		go func() { io.Copy(connection, stream); connection.(*net.TCPConn).CloseWrite(); done <- struct{}{} }()
		go func() { io.Copy(stream, connection); stream.Close(); done <- struct{}{} }()
		<-done
		<-done
		return nil
	}
	return fmt.Errorf("nothing listens on port %d of %s", port, pod)
}

func main() {
	certificate, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		log.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	forward := func(w http.ResponseWriter, r *http.Request) {
		options, err := portforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		pod := r.PathValue("namespace") + "/" + r.PathValue("pod")
		portforward.ServePortForward(w, r, forwarder{os.Args[1]}, pod, "", options, time.Hour, 30*time.Second,
			portforward.SupportedProtocols)
	}
	http.HandleFunc("/portForward/{namespace}/{pod}", forward)
	// SPDY takes over a connection of HTTP/1.1.
	server := http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(server.ServeTLS(listener, "", ""))
}
