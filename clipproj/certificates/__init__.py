"""What is proven of an edit: by how much a forgotten name can lead the kept ones, on any row."""

from clipproj.certificates.certificate import Certificate
from clipproj.certificates.certify import certificate

__all__ = ["Certificate", "certificate"]
