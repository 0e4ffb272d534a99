# The CNI plugin and its installer: one static program. tests/images/build makes the program and the image.
# It runs as root, because the node's folders are root's; without any capability.
FROM scratch
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tulle-cni" \
      org.opencontainers.image.description="The CNI plugin of the Tulle service mesh, and its installer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY tulle-cni tulle-cni.cdx.json /
USER 0:0
ENTRYPOINT ["/tulle-cni"]
