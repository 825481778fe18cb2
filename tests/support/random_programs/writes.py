"""Steps that make views, and write into them."""

import torch
import torch.nn.functional as F

from support.random_programs.steps import Step, step


def normalize_slice(x):
    x[:, :3].sub_(0.4).div_(0.25)


def normalize_each(x):
    for k, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224))):
        x[:, k].sub_(mean).div_(std)


def assign_channel(x):
    x[:, 0] = (x[:, 0] - 0.485) / 0.229


def swap_channels(x):
    x[:, [0, 1]] = x[:, [1, 0]]


def threshold(x):
    x[x < 0.25] = 0.25


def border(x):
    x[..., 0] = 0.5
    x[:, :, -1:].mul_(2)


def transposed(x):
    x.transpose(2, 3)[:, :, 0].zero_()
    x.permute(0, 2, 3, 1)[..., 1].add_(0.7)


def by_foreach(x):
    torch._foreach_mul_([x[:, :1], x[:, 1:]], 1.5)
    torch._foreach_add_([x], [x * 0.5])


def by_out(x):
    torch.mul(x, 1.25, out=x)
    torch.add(x[:, :1], 0.3, out=x[:, 1:2])


def strided(x):
    x[:, :, ::2].add_(x[:, :, ::2])


def flipped(x):
    x.copy_(x.flip(-1))


def lerped(x):
    x.lerp_(x.mean((2, 3), keepdim=True), 0.25)


def through_data(x):
    x.data.mul_(1.5)


def through_detach(x):
    x.detach()[:, 1:].add_(0.2)


def diagonal(x):
    x.diagonal(0, 2, 3).fill_(0.75)


def masked(x):
    x.masked_fill_(x > 0.75, 0.75)
    x.clamp_(min=0.1)


def scattered(x):
    index = torch.tensor([0, 2])
    x.index_add_(1, index, torch.ones_like(x[:, :2]))
    x.index_fill_(1, torch.tensor([1]), 0.3)


def relu_of_slice(x):
    F.relu(x[:, 1:].sub_(0.3), inplace=True)


def whole_relu(x):
    F.relu(x.sub_(0.4), inplace=True)


def parts(x):
    for k, part in enumerate(x.unbind(1)[:3]):
        part.mul_(1 + 0.25 * k)
    first, second = x.split([1, x.shape[1] - 1], 1)
    first.add_(second[:, :1])


WRITES = (normalize_slice, normalize_each, assign_channel, swap_channels, threshold, border, transposed, by_foreach,
          by_out, strided, flipped, lerped, through_data, through_detach, diagonal, masked, scattered, relu_of_slice,
          whole_relu, parts)  # fmt: skip

VIEWS = {
    "slice": lambda x: x[:, 1:3],
    "step": lambda x: x[:, :, ::2, 1:],
    "transpose": lambda x: x.transpose(1, 3),
    "chunk": lambda x: x.chunk(2, 1)[0],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "unbind": lambda x: x.unbind(-1)[0],
    "select": lambda x: x.select(2, 0),
    "view": lambda x: x.contiguous().view(x.shape[0], -1),
    "viewed": lambda x: x.view(x.shape[0], x.shape[1], *x.shape[2:]),
    "reshape": lambda x: x.reshape(x.shape[0], x.shape[1], -1),
    "flatten": lambda x: x.flatten(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "unsqueeze": lambda x: x.unsqueeze(2)[:, :, 0],
    "ellipsis": lambda x: x[..., -1],
    "detach": lambda x: x.detach()[:1],
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "unfold": lambda x: x.unfold(3, 2, 2),
    "movedim": lambda x: x.movedim(1, -1),
    "real": lambda x: x.real[:, :2],
    "swapped": lambda x: x.mT,
    "strided": lambda x: x.contiguous().as_strided((x.shape[1],), (1,)),
}


@step(4)
class Write(Step):
    """A write in place, into the image or into a map; a copy, a view or nothing of it is kept from before."""

    def set_up(self, plan):
        to_image = plan.chance(0.35)
        self.read(plan, lambda c, level: c >= 3) if not to_image else self.reads.append(0)
        self.write, self.before = plan.choice(*WRITES), plan.choice("copy", "view", "nothing", "nothing")
        self.view = plan.choice(*VIEWS)
        self.copies = plan.chance(0.3)  # a map of its own is written
        self.makes = [plan.maps[self.reads[0]]] if self.copies else []

    def forward(self, x):
        y = x * 1 if self.copies else x
        kept = {"copy": lambda: [y.clone()], "view": lambda: [VIEWS[self.view](y)], "nothing": list}[self.before]()
        self.write(y)
        return [y, *kept] if self.copies else kept


@step(3)
class View(Step):
    """A view that belongs to the results, and is perhaps written, before or after what it is a view of."""

    def set_up(self, plan):
        c, level = self.read(plan, lambda c, level: c >= 3)
        self.view, self.copies = plan.choice(*VIEWS), plan.chance(0.5)
        self.write = plan.choice("no", "sub", "mul", "fill", "base", "copy", "relu", "setitem")
        self.makes = [(c, level)] if self.copies else []

    def forward(self, x):
        x = x + 0.5 if self.copies else x
        view = VIEWS[self.view](x)
        if self.write == "sub":
            view.sub_(0.3)
        elif self.write == "mul":
            view.mul_(1.5)
        elif self.write == "fill":
            view.fill_(0.25)
        elif self.write == "base":
            x.add_(0.4)
        elif self.write == "copy":
            view.copy_(view.flip(0) * 0.5)
        elif self.write == "relu":
            F.relu(view, inplace=True)
        elif self.write == "setitem":
            view[..., 0] = 0.6
        return [x, view] if self.copies else [view]


@step(1.5)
class Expanded(Step):
    def set_up(self, plan):
        c, level = self.read(plan)
        self.makes, self.in_place = [(c, level)], plan.chance(0.5)

    def forward(self, x):
        mean = x.mean((0, 2, 3)).view(1, -1, 1, 1).expand_as(x)
        if not self.in_place:
            return [x - mean, mean[:, :, 0]]
        y = mean.clone()
        y += x
        return [y, mean]


@step(1.5)
class Shuffled(Step):
    """Channels taken apart and put together again."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.makes = [(c, level)]
        self.way = plan.choice("chunk", "unbind", "zeros", "roll", "select", "split")

    def forward(self, x):
        if self.way == "chunk":
            first, second = (x * 1).chunk(2, 1)
            first[:, : second.shape[1]].add_(second)
            second.mul_(first[:, : second.shape[1]])
            return [torch.cat([second, first], 1), first]
        if self.way == "unbind":
            return [torch.stack(x.unbind(1)[::-1], 1)]
        if self.way == "zeros":
            y = x.new_zeros(x.shape)
            y[:, ::2] = x[:, ::2]
            y[:, 1::2] = -x[:, 1::2]
            y[:, :, 1:, :] += 1
            return [y]
        if self.way == "roll":
            return [x.roll(1, 1)]
        if self.way == "select":
            return [x.select(1, 0).unsqueeze(1).expand(-1, x.shape[1], -1, -1)]
        first, second = x.split([1, x.shape[1] - 1], 1)
        return [torch.cat([second, first], 1), first[:, 0]]


@step(2.5)
class Out(Step):
    """Results by ``out=``, into a tensor, a view or a part of one; views of it are read later."""

    def set_up(self, plan):
        c, level = self.read(plan)
        self.way = plan.choice("view", "part", "name", "resized", "itself", "relu", "cat")
        self.makes = [(2 * c if self.way in ("part", "cat") else c, level)]

    def forward(self, x):
        if self.way == "view":
            y = torch.zeros_like(x)
            view = y.view(y.shape)
            torch.add(x, x, out=y)
            return [y, view * 1.0, view[:, :2]]
        if self.way == "part":
            y = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), 0.5)
            torch.mul(x, 2, out=y[:, : x.shape[1]])
            return [y]
        if self.way == "name":
            y = torch.zeros_like(x)
            part = y[:, :2]
            torch.mul(input=x, out=y, other=2.0)
            return [y, part + 1]
        if self.way == "resized":
            y = torch.empty(0)
            torch.add(x, 1, out=y)
            return [y]
        if self.way == "itself":
            y = x * 0.5
            view = y[:, 1:]
            torch.sub(y, 1.0, out=y)
            return [y, view]
        if self.way == "relu":
            y = torch.empty_like(x)
            torch.clamp(x, min=0.0, out=y)
            return [y]
        y = x.new_empty((x.shape[0], 2 * x.shape[1], *x.shape[2:]))
        torch.cat([x, -x], 1, out=y)
        return [y]


@step(1)
class Foreach(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.way = plan.choice("mul", "add", "list", "functional")

    def forward(self, x):
        y, z = x * 0.5, x + 0.25
        view = z[:, 1:]
        if self.way == "mul":
            torch._foreach_mul_([y, z], 1.5)
        elif self.way == "add":
            torch._foreach_add_([y, z], [z, y])
        elif self.way == "list":
            torch._foreach_mul_([y, z], [1.5, 0.75])
        else:
            y, z = torch._foreach_add([y, z], 1.0)
        return [y, z, view]


@step(0.7)
class InPlaceMetadata(Step):
    def set_up(self, plan):
        self.makes = [self.read(plan)]
        self.swap = plan.chance(0.4)

    def forward(self, x):
        if self.swap:
            y = x * 2
            y.data = x + 1
            y.add_(1)
            return [y]
        mean = x.mean((2, 3))
        mean.unsqueeze_(-1).unsqueeze_(-1)
        return [x * (1 + mean.sigmoid()), mean]
