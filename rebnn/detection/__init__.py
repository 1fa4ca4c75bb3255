"""Binary detectors: Faster-RCNN in the form of IDa-Det and of BiDet, and BiDet's SSD300 (sections 3.3 and 3.4)."""
