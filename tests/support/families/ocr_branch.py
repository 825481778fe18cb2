"""The HRNet-OCR branch of segmentation: align_corners is a global of the module, set by the last model built."""

from support.families import official

ALIGN_CORNERS = True


class Module(official.SizedModule):
    def forward(self, x):
        return self.fuse(x, ALIGN_CORNERS)


class Network(official.Network):
    module = Module

    def forward(self, x):
        return self.run(x, ALIGN_CORNERS)
