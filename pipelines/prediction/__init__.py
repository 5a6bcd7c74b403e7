"""Running a detector on a user's images, videos and cameras, with nothing installed that only training needs."""
